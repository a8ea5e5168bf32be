"""FedPHA: its release's values with one length and with several, its terms by hand, and PromptFL as a special case."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_helpers import build_federation, work_of
from golden_helpers import case_client, difference, fit, gradients, read_case
from torch import Tensor

from fedmoe.cli import main
from fedmoe.config import FeatureConfig, FederationConfig, PromptConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import FedPHA, PromptFL
from fedmoe.methods.fedpha import pull, push, weak_projector
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext
from fedmoe.seeds import torch_generator
from fedmoe.server.state import ServerState

CONFIG = FederationConfig(clients=5, participation=0.6, rounds=2, local_epochs=1, batch_size=32)
CONTEXT = RoundContext(1, (0, 1, 2), 0)
CASES = ["rn", "vit", "vit_lengths"]


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


class Golden:
    """A case: its method, client and tensors. Local prompts are padded with zeros to the longest."""

    def __init__(self, clips: dict[str, FrozenCLIP], case: str) -> None:
        self.settings, self.tensors = read_case(f"fedpha_{case}")
        lengths, self.several = self.settings["n_ctx_local"], case.endswith("lengths")
        self.lengths = lengths if self.several else [lengths] * len(self.settings["clients"])
        self.client = self.settings["client_index"]
        self.method = FedPHA(
            self.lengths if self.several else None,
            ratio=self.settings["ratio"],
            alpha=self.settings["alpha"],
            pull=self.settings["lambda_pull"],
            push=self.settings["lambda_push"],
            eot="longest" if self.several else "own",
        )
        clip = clips[self.settings["backbone"]]
        self.module = case_client(clip, self.settings, self.method, self.settings["n_ctx_global"])

    def local(self, prefix: str, client: int) -> Tensor:
        """A client's local prompt of the case, of its own length."""
        return self.tensors[f"{prefix}ctx_local.{client}" if self.several else f"{prefix}ctx_local"]

    def padded(self, local: Tensor) -> Tensor:
        return torch.cat([local, local.new_zeros(max(self.lengths) - len(local), local.shape[1])])

    def own(self, found: Tensor, client: int) -> Tensor:
        """The vectors that a client uses; the others never move from zero."""
        assert not found[self.lengths[client] :].any()
        return found[: self.lengths[client]]


@pytest.mark.parametrize("case", CASES)
def test_values_are_the_releases(golden_clips: dict[str, FrozenCLIP], case: str) -> None:
    made = Golden(golden_clips, case)
    golden, method, module, client = made.tensors, made.method, made.module, made.client
    shared, local = golden["ctx_global"], made.local("", client)
    module.load(client, Loadout({"prompt": shared, "local": made.padded(local)}))
    images, labels = golden["image_features"], golden["labels"].long()
    projected = local @ weak_projector(shared, method.ratio)
    assert difference(projected, golden["projected_ctx_local"]) < 1e-5
    with torch.no_grad():
        for name, prompt in {"local": local, "global": shared, "projected": projected}.items():
            assert difference(method.features(module, prompt), golden[f"text_features_{name}"]) < 1e-5
        assert difference(module(images), golden["logits"]) < 1e-5
    terms = method.terms(module, images, labels)
    names = {"local": "ce_local", "global": "ce_global", "pull": "pull", "push": "push"}
    assert terms.keys() == names.keys()
    for ours, theirs in names.items():
        assert difference(terms[ours][None], golden[f"loss_{theirs}"]) < 1e-5
        found = gradients(module, terms[ours])
        for tensor, stored in {"prompt": f"grad_{theirs}.ctx_global", "local": f"grad_{theirs}.ctx_local"}.items():
            stored = f"{stored}.{client}" if made.several and tensor == "local" else stored
            if stored in golden:
                value = made.own(found[tensor], client) if tensor == "local" else found[tensor]
                # The release's own rounding: recomputed in float64, a single term's gradient differs by up to 2.1e-5.
                assert difference(value, golden[stored]) < 3e-5
            else:
                assert tensor not in found
    loss = method.loss(module, images, labels)
    assert difference(loss[None], golden["loss"]) < 1e-5
    found = gradients(module, loss)
    assert difference(found["prompt"], golden["grad.ctx_global"]) < 1e-5
    assert difference(made.own(found["local"], client), made.local("grad.", client)) < 1e-5
    fit(module, images, labels, made.settings["steps"])
    assert difference(torch.stack(module.losses), golden["after.losses"]) < 1e-5
    after = module.export()
    assert difference(after["prompt"], golden["after.ctx_global"]) < 1e-5
    assert difference(made.own(after["local"], client), made.local("after.", client)) < 1e-5
    with torch.no_grad():
        assert difference(module(images), golden["after.logits"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_federation_is_the_releases(golden_clips: dict[str, FrozenCLIP], case: str) -> None:
    """Rounds of all clients through the method's own hooks, with full batches in the stored order."""
    made = Golden(golden_clips, case)
    golden, method, module = made.tensors, made.method, made.module
    counts = [int(n) for n in golden["fed.n"]]
    locals_ = [made.local("", i if made.several else 0) for i in range(len(counts))]
    states = [ClientState({"local": made.padded(local)}) for local in locals_]
    server = ServerState({"prompt": golden["ctx_global"]})
    for number in range(made.settings["rounds"]):
        updates = []
        for i, state in enumerate(states):
            downlink = method.configure(server, i, CONTEXT)
            module.load(i, method.start(state, downlink))
            place = f"fed.client{i}."
            fit(module, golden[f"{place}features"], golden[f"{place}labels"], made.settings["local_epochs"])
            update, states[i] = method.finish(module, state, downlink, counts[i])
            trained = f"fed.round{number}.client{i}.trained."
            assert difference(update.parameters["prompt"], golden[f"{trained}ctx_global"]) < 1e-5
            assert difference(made.own(states[i].parameters["local"], i), made.local(trained, i)) < 1e-5
            updates.append(update)
        method.aggregate(server, updates, CONTEXT)
        assert difference(server.shared["prompt"], golden[f"fed.round{number}.server.ctx_global"]) < 1e-5
        for i, state in enumerate(states):
            downlink = method.deploy(server, i, CONTEXT)
            assert downlink.nbytes == 0
            module.load(i, method.inference(state, downlink))
            with torch.no_grad():
                logits = module(golden[f"fed.client{i}.test_features"])
            assert difference(logits, golden[f"fed.round{number}.client{i}.logits"]) < 2e-5


# By hand


def test_the_projection_keeps_the_weak_directions() -> None:
    """Rows 5 e_0, 3 e_1, 1 e_2 in four dimensions at ratio 2/3: int(3 * (1 - 2/3)) = 1 direction, e_0, is left out, and
    e_3, which no row has, too. At ratio 1 the rows' whole space is kept."""
    prompt = torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.0]))[:3]
    torch.testing.assert_close(weak_projector(prompt, 2 / 3), torch.diag(torch.tensor([0.0, 1, 1, 0])))
    torch.testing.assert_close(weak_projector(prompt, 1.0), torch.diag(torch.tensor([1.0, 1, 1, 0])))


@pytest.mark.parametrize(("length", "left_out"), [(16, 3), (32, 6), (10, 1), (8, 1), (4, 0)])
def test_how_many_directions_are_left_out(length: int, left_out: int) -> None:
    """The release's counts at ratio 0.8, with the rounding of floating point; numpy's decomposition in float64."""
    prompt = torch.randn(length, 40, generator=torch_generator(length), dtype=torch.float64)
    right = np.linalg.svd(prompt.numpy())[2][left_out:length]
    np.testing.assert_allclose(weak_projector(prompt, 0.8).numpy(), right.T @ right, atol=1e-12)


def test_the_gradient_runs_through_the_decomposition() -> None:
    prompt = torch.randn(4, 6, generator=torch_generator(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: weak_projector(p, 0.5), prompt)


def test_pull_and_push_by_hand() -> None:
    """Two classes, two coordinates. Squares 1, 0, 0, 4: mean 5/4. Distances 1 and 2: max(0, 1.5 - d) = 0.5 and 0."""
    local, other = torch.tensor([[1.0, 0], [0, 2]]), torch.zeros(2, 2)
    assert float(pull(local, other)) == 1.25
    assert float(push(local, other, 1.5)) == 0.25


def test_each_client_has_its_own_length(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """Client 4 has the second of three lengths; its features are those of a learner of that length."""
    method = FedPHA([4, 7, 20])
    federation, _ = build_federation(embedded_clip, data, method, CONFIG)
    module = work_of(federation).module
    module.load(4, Loadout())
    own = method.local(module)
    assert own.shape == (7, embedded_clip.token_width)
    plain = PromptLearner(embedded_clip, data.class_names, PromptConfig(length=7))
    torch.testing.assert_close(method.features(module, own), plain(own), rtol=0, atol=0)
    with torch.no_grad():
        module.load(4, Loadout({"local": torch.cat([own, 9 * torch.ones(13, own.shape[1])])}))
        torch.testing.assert_close(method.features(module, method.local(module)), plain(own), rtol=0, atol=0)


def test_the_features_behind_the_eot_are_open_clips(embedded_clip: FrozenCLIP) -> None:
    """Two tokens behind the EOT, in open_clip's full pass over all 77 tokens."""
    prompts = PromptLearner(embedded_clip, ["zero", "one"], PromptConfig(length=4))
    own = torch.randn(3, embedded_clip.token_width, generator=torch_generator(1))
    found = prompts.encode(own, behind=2)
    clip = embedded_clip
    ids = clip.tokenize([f"X X X {name}." for name in ("zero", "one")])
    x = clip.text.token_embedding(ids).clone()
    x[:, 1:4] = own
    x = clip.text.transform(x + clip.text.positional_embedding)
    read = clip.text.project(x[torch.arange(2), ids.argmax(dim=1) + 2])
    torch.testing.assert_close(found, torch.nn.functional.normalize(read, dim=-1))
    with pytest.raises(UserError, match="of 77, too far back"):
        prompts.encode(own, behind=72)


# A neighbour, and the command line


def test_without_pull_and_push_the_global_prompt_is_promptfls(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    methods = (PromptFL(), FedPHA([4, 20], pull=0.0, push=0.0))
    (plain, _), (ours, log) = (build_federation(embedded_clip, data, method, CONFIG) for method in methods)
    for federation in (plain, ours):
        federation.run()
    assert torch.equal(plain.server.shared["prompt"], ours.server.shared["prompt"])
    assert all(record.bytes["evaluate_down"] == 0 for record in log.records)


def test_its_config_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    small = ["--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--output.name=own"]
    files = [f"--config={root / name}" for name in ("configs/embedded.yaml", "configs/methods/fedpha.yaml")]
    lengths = "--method.lengths=[4, 20]"
    assert main(["fit", *files, lengths, *small, f"--features.cache_dir={tmp_path / 'cache'}"]) == 0
    assert math.isfinite(json.loads((tmp_path / "runs/own/summary.json").read_text())["accuracy"]["mean"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lengths": []}, "lengths"),
        ({"lengths": [4, 0]}, "lengths"),
        ({"ratio": 0.0}, "ratio"),
        ({"alpha": -1.0}, "alpha"),
        ({"push": -1.0}, "push"),
    ],
)
def test_mistakes_are_told(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{said} is"):
        FedPHA(**settings)  # type: ignore[arg-type]


def test_nothing_is_downloaded_for_an_evaluation() -> None:
    assert FedPHA().deploy(ServerState({"prompt": torch.ones(2, 3)}), 0, CONTEXT) == Downlink()
