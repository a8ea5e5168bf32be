"""``export`` and ``import``: a client of a run as a folder of its own, and back."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fedmoe.cli import main
from fedmoe.data.sets.digits import Digits
from fedmoe.errors import UserError
from fedmoe.export.head import load_head
from fedmoe.export.parts import head_parts
from fedmoe.federation.restore import read_state
from fedmoe.federation.state import FederationState
from fedmoe.methods import FedLoRA, FedMaPLe, FedVPT, LocalAdapter, Method, PFedMMA
from fedmoe.models.adapter import ResidualAdapter
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client
from fedmoe.runs.checkpoint import StateStore

CONFIGS = Path(__file__).parents[1] / "configs"
CLIENT = 1
Fit = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


class Doubled(ResidualAdapter):
    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(image_features) + 1


class OtherAdapter(LocalAdapter):
    """Inherits its logits, but not what they are made of."""

    label = "<b>*other*"

    def _adapter(self, feature_dim: int, generator: torch.Generator | None = None) -> ResidualAdapter:
        return Doubled(feature_dim, self.gating_dim, generator, self.pooling)


class OtherLogits(LocalAdapter):
    def logits(self, client: Client, image_features: torch.Tensor) -> torch.Tensor:
        return super().logits(client, image_features)


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Trains a short run once for each set of options, and gives its folder."""
    folder = tmp_path_factory.mktemp("runs")
    done: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in done:
            done[options] = folder / str(len(done))
            args = [
                f"--config={CONFIGS / 'embedded.yaml'}",
                f"--features.cache_dir={tmp_path_factory.getbasetemp() / 'features'}",
                f"--output.dir={folder}",
                f"--output.name={len(done) - 1}",
                "--federation.clients=3",
                "--federation.participation=1",
                "--federation.rounds=2",
                "--federation.local_epochs=1",
                "--optim.prompt_lr=0.02",
                "--optim.gating_lr=0.05",
                "--runtime.threads=1",
                "--runtime.accelerator=cpu",
            ]
            assert main(["fit", *args, *options]) == 0
        return done[options]

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, data = tmp_path_factory.mktemp("images"), Digits()
    for i in range(8):
        data.test.image(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def features(embedded_clip: FrozenCLIP) -> torch.Tensor:
    """The image features of ``images``, from CLIP itself."""
    data = Digits()
    return embedded_clip.encode_image(torch.stack([embedded_clip.preprocess(data.test.image(i)) for i in range(8)]))


def predicted(run: Path, images: Path, capsys: Capture, client: int = CLIENT) -> list[dict]:
    capsys.readouterr()
    args = [str(run), str(images), f"--client={client}", "--top=10", "--format=json"]
    assert main(["predict", *args]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


TOWER = ("--clip.architecture=fedmoe-tiny-vit", "--federation.rounds=1", "--data.subset.train=90")
NEIGHBOURS = ("--method=NeighbourMixture", "--method.num_experts=2", "--method.lmbda=0.7")
MIXTURE = ("--method=PFedMoAP", "--method.num_experts=2")


@pytest.mark.parametrize(
    "options",
    [
        MIXTURE,
        (*MIXTURE, "--method.gate=linear", "--method.pooling=average"),
        (*MIXTURE, "--method.attention=uniform", "--method.evaluation_experts=held"),
        ("--method=PFedMoAP", "--method.num_experts=0"),
        ("--method=PFedMoAP", "--method.gate=none", "--method.num_experts=1"),
        ("--method=LocalAdapter",),
        ("--method=FedPGP",),
        ("--method=PromptFLFT", "--method.epochs=1"),
        ("--method=ZeroShot",),
        ("--method=PromptFolio", "--method.theta=0.3"),
        ("--method=FedPHA", "--method.lengths=[4, 8]"),
        ("--method=DPFPL",),
        ("--method=FedTPG",),
        NEIGHBOURS,
        ("--method=NeighbourMixture", "--method.num_experts=0", "--method.head_weight=0"),
    ],
)
def test_the_exported_head_predicts_what_the_client_predicts(
    options: tuple[str, ...], fit: Fit, images: Path, features: torch.Tensor, tmp_path: Path, capsys: Capture
) -> None:
    run, out = fit(*options), tmp_path / "out"
    assert main(["export", str(run), str(out), f"--client={CLIENT}"]) == 0
    head = load_head(out)
    shares, weights = head(features).softmax(dim=-1), head.expert_weights(features)
    found = predicted(run, images, capsys)
    assert len(found) == len(shares) == 8
    for i, one in enumerate(found):
        told = {entry["class"]: entry["probability"] for entry in one["classes"]}
        assert told == pytest.approx(dict(zip(head.class_names, shares[i].tolist(), strict=True)), abs=1e-5)
        if one["experts"]:
            assert [expert["weight"] for expert in one["experts"]] == pytest.approx(weights[i].tolist(), abs=1e-6)
        else:
            assert weights[i].tolist() == [1.0]


def test_the_folder_needs_nothing_of_this_package(
    fit: Fit, images: Path, features: torch.Tensor, tmp_path: Path, capsys: Capture
) -> None:
    run, out = fit(*MIXTURE), tmp_path / "out"
    assert main(["export", str(run), str(out), f"--client={CLIENT}"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "client.json", "client.safetensors", "head.py"]
    save_file({"features": features}, tmp_path / "features.safetensors")
    program = (
        "import sys; sys.path.insert(0, 'out')\n"
        "from head import load_head; from safetensors.torch import load_file\n"
        "head = load_head('out')\n"
        "print(head(load_file('features.safetensors')['features']).argmax(1).tolist(), head.class_names[3])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('fedmoe', 'lightning', 'open_clip')]\n"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    best = [Digits().class_names.index(one["classes"][0]["class"]) for one in predicted(run, images, capsys)]
    assert ran.stdout.strip() == f"{best} three"


def test_a_routers_head_predicts_and_routes_as_the_client_does(
    fit: Fit, images: Path, features: torch.Tensor, tmp_path: Path, capsys: Capture
) -> None:
    run, out = fit("--method=FedSEPT", "--method.num_experts=3"), tmp_path / "out"
    assert main(["export", str(run), str(out), f"--client={CLIENT}"]) == 0
    head, told = load_head(out), json.loads((out / "client.json").read_text())
    assert told["experts"] == ["expert 1", "expert 2", "expert 3"]
    for one, shares in zip(predicted(run, images, capsys), head(features).softmax(dim=-1).tolist(), strict=True):
        probabilities = {entry["class"]: entry["probability"] for entry in one["classes"]}
        assert probabilities == pytest.approx(dict(zip(head.class_names, shares, strict=True)), abs=1e-5)
    state = {name.rpartition("router.")[2]: t for name, t in load_file(out / "client.safetensors").items()}
    value = torch.nn.functional.linear(features, state["value.weight"], state["value.bias"])
    inner = torch.nn.functional.linear(value, state["output.weight"], state["output.bias"])
    norm = (inner - inner.mean(-1, keepdim=True)) / (inner.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    norm = norm * state["norm.weight"] + state["norm.bias"]
    weights = (norm @ state["weights.weight"].T + state["weights.bias"]).softmax(-1)
    assert torch.allclose(head.expert_weights(features), weights, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        MIXTURE,
        (*MIXTURE, "--method.gate=linear", "--method.pooling=average"),
        ("--method=LocalAdapter",),
        NEIGHBOURS,
    ],
)
def test_onnx_computes_what_the_client_computes(
    options: tuple[str, ...], fit: Fit, images: Path, features: torch.Tensor, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    run, out = fit(*options), tmp_path / "out"
    assert main(["export", str(run), str(out), f"--client={CLIENT}", "--onnx=true"]) == 0
    session = runtime.InferenceSession(str(out / "head.onnx"), providers=["CPUExecutionProvider"])
    logits, weights = session.run(["logits", "expert_weights"], {"image_features": features.numpy()})
    shares = torch.from_numpy(logits).softmax(dim=-1)
    for i, one in enumerate(predicted(run, images, capsys)):
        told = {entry["class"]: entry["probability"] for entry in one["classes"]}
        assert told == pytest.approx(dict(zip(Digits().class_names, shares[i].tolist(), strict=True)), abs=1e-5)
        if one["experts"]:
            assert [expert["weight"] for expert in one["experts"]] == pytest.approx(weights[i].tolist(), abs=1e-6)
    assert session.run(["logits"], {"image_features": features[:1].numpy()})[0].shape == (1, 10)


def test_the_card_has_a_hubs_header_and_the_accuracy_of_the_last_evaluation(
    fit: Fit, tmp_path: Path, capsys: Capture
) -> None:
    run, out = fit(*MIXTURE), tmp_path / "deep" / "out"
    assert main(["export", str(run), str(out), f"--client={CLIENT}"]) == 0
    _, header, text = (out / "README.md").read_text().split("---\n", 2)
    assert {"library_name", "pipeline_tag", "license", "tags"} <= yaml.safe_load(header).keys()
    lines = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    (score,) = (line for line in lines if line["client"] == CLIENT and line["round"] == 2)
    assert f"{100 * score['correct'] / score['total']:.2f} %" in text


@pytest.mark.parametrize(
    ("options", "name", "why"),
    [
        (("--method=FedOTP",), "FedOTP", "places of an image"),
        (("--method=PFedPrompt",), "PFedPrompt", "features of the client's training images, which never leave"),
        (("--method=FedMGP", *TOWER), "FedMGP", "works within CLIP's image encoder"),
        (("--method=test_export.OtherAdapter",), "OtherAdapter", "none of the forms"),
        (("--method=test_export.OtherLogits",), "OtherLogits", "none of the forms"),
    ],
)
def test_what_predicts_in_another_way_is_refused(
    options: tuple[str, ...], name: str, why: str, fit: Fit, tmp_path: Path, capsys: Capture
) -> None:
    sentence = fails(["export", str(fit(*options)), str(tmp_path / "out"), "--client=0"], capsys)
    assert sentence.startswith(f"Error: {name} cannot be exported: ")
    assert why in sentence and "PFedMoAP" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", [FedLoRA(), FedMaPLe(), FedVPT(), PFedMMA()])
def test_every_method_within_the_image_encoder_is_refused(method: Method) -> None:
    with pytest.raises(UserError, match=f"^{type(method).__name__} cannot be exported: it works within CLIP's image"):
        head_parts(SimpleNamespace(method=method))  # type: ignore[arg-type]


def test_a_taken_place_is_left_as_it_is(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        sentence = fails(["export", str(fit(*MIXTURE)), str(place), "--client=0"], capsys)
        assert "is there already" in sentence
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_client_goes_to_another_run_and_predicts_there_as_before(
    fit: Fit, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    here, there, out = fit("--method=LocalAdapter"), tmp_path / "there", tmp_path / "out"
    shutil.copytree(fit("--method=LocalAdapter", "--optim.prompt_lr=0.001", "--seed=3"), there)
    assert main(["export", str(here), str(out), f"--client={CLIENT}"]) == 0
    expected, before = predicted(here, images, capsys), predicted(there, images, capsys, client=2)
    assert expected != before
    assert main(["import", str(out), f"--into={there}", "--client=2"]) == 0
    assert predicted(there, images, capsys, client=2) == expected  # all it predicts with is its own


def test_a_newer_methods_client_returns_to_its_run(fit: Fit, images: Path, tmp_path: Path, capsys: Capture) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(fit("--method=FedPHA", "--method.lengths=[4, 8]"), run)
    expected = predicted(run, images, capsys)
    assert main(["export", str(run), str(out), f"--client={CLIENT}"]) == 0
    assert main(["fit", "--resume", str(run), "--federation.rounds=3"]) == 0
    assert predicted(run, images, capsys) != expected
    assert main(["import", str(out), f"--into={run}", f"--client={CLIENT}"]) == 0
    assert predicted(run, images, capsys) == expected


def state_of(run: Path) -> FederationState:
    state = read_state(StateStore(run / "state"))
    assert state is not None
    return state


def test_a_client_returns_to_its_run_and_nothing_else_changes(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(fit(*MIXTURE), run)
    first = dict(state_of(run).flatten()[0])
    assert main(["export", str(run), str(out), f"--client={CLIENT}"]) == 0
    assert main(["fit", "--resume", str(run), "--federation.rounds=3"]) == 0
    later, known = state_of(run).flatten()
    assert main(["import", str(out), f"--into={run}", f"--client={CLIENT}"]) == 0
    now, told = state_of(run).flatten()
    own = {name for name in now if name.startswith((f"client/{CLIENT}/", f"pool/{CLIENT}/"))}
    assert len(own) >= 3  # prompt and gate, and the pool's entry
    assert now.keys() == later.keys() == first.keys()
    for name, tensor in now.items():
        assert torch.equal(tensor, (first if name in own else later)[name]), name
        assert name not in own or not torch.equal(tensor, later[name])
    seen = told["clients"][str(CLIENT)]
    assert (told["round"], seen["version"], seen["rounds_seen"]) == (3, 2, 3)  # it has uploaded three times
    others = [{i: seen for i, seen in rest["clients"].items() if i != str(CLIENT)} for rest in (told, known)]
    assert others[0] == others[1]
    assert main(["evaluate", str(run)]) == 0
    assert main(["fit", "--resume", str(run), "--federation.rounds=4"]) == 0
    assert state_of(run).round == 4


def changed(folder: Path, **values: object) -> None:
    told = json.loads((folder / "client.json").read_text())
    (folder / "client.json").write_text(json.dumps({**told, **values}))


def retold(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """Replace a tensor, with the checksum that belongs to it."""
    path = folder / "client.safetensors"
    save_file({**load_file(path), name: tensor}, path)
    changed(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("options", "change", "args", "words"),
    [
        (("--method=PromptFL",), None, (), ["method fedmoe.methods.pfedmoap.PFedMoAP", "PromptFL"]),
        ((*MIXTURE, "--data.subset.classes=5"), None, (), ["10 classes", "5 of"]),
        ((*MIXTURE, "--clip.pretrained=null"), None, (), ["CLIP fedmoe-tiny glyphs", "fedmoe-tiny random"]),
        ((*MIXTURE, "--prompt.init=null", "--prompt.length=2"), None, (), ["prompt", "is of shape"]),
        (MIXTURE, None, ("--client=3",), ["client is 3", "0 to 2"]),
        (MIXTURE, lambda out: changed(out, format=7), (), ["format 7", "format 1"]),
        (MIXTURE, lambda out: changed(out, client="x"), (), ["client.json", "client"]),
        (MIXTURE, lambda out: changed(out, rounds_seen=0), (), ["never trained"]),
        (MIXTURE, lambda out: (out / "client.json").unlink(), (), ["has no client.json"]),
        (MIXTURE, lambda out: (out / "client.json").write_text("{"), (), ["client.json", "not valid JSON"]),
        (MIXTURE, lambda out: (out / "client.safetensors").unlink(), (), ["client.safetensors is missing"]),
        (MIXTURE, lambda out: (out / "client.safetensors").write_bytes(b"x"), (), ["not the file"]),
        (
            MIXTURE,
            lambda out: retold(out, "state/parameters/prompt", torch.zeros(1)),
            (),
            ["prompt", "is of shape [1]"],
        ),
        (MIXTURE, lambda out: retold(out, "state/parameters/more", torch.zeros(1)), (), ["keeps more"]),
        (MIXTURE, lambda out: retold(out, "pool/prompt", torch.full((16, 64), torch.nan)), (), ["prompt"]),
    ],
)
def test_an_import_that_does_not_fit_changes_nothing(
    options: tuple[str, ...],
    change: Callable[[Path], object] | None,
    args: tuple[str, ...],
    words: list[str],
    fit: Fit,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    run, out = fit(*options), tmp_path / "out"
    assert main(["export", str(fit(*MIXTURE)), str(out), f"--client={CLIENT}"]) == 0
    if change is not None:
        change(out)
    before = {path: path.read_bytes() for path in (run / "state").iterdir()}
    sentence = fails(["import", str(out), f"--into={run}", *(args or (f"--client={CLIENT}",))], capsys)
    assert all(word in sentence for word in words), sentence
    assert {path: path.read_bytes() for path in (run / "state").iterdir()} == before


def test_a_local_prompt_goes_only_where_its_length_belongs(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(fit("--method=FedPHA", "--method.lengths=[4, 8]"), run)
    assert main(["export", str(run), str(out), "--client=1"]) == 0
    sentence = fails(["import", str(out), f"--into={run}", "--client=2"], capsys)
    assert "client 1 with 8 context vectors" in sentence and "client 2 has 4 of them" in sentence


def test_import_needs_a_run(tmp_path: Path, capsys: Capture) -> None:
    assert "into is not given" in fails(["import", str(tmp_path), "--client=0"], capsys)
    assert "not a run folder" in fails(["import", str(tmp_path), "--client=0", f"--into={tmp_path}"], capsys)


def fails(args: list[str], capsys: Capture) -> str:
    capsys.readouterr()
    assert main(args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
