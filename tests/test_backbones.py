"""Text encoders other than CLIP's: SigLIP's, CLIPA's, MobileCLIP's, multilingual ones. The reference is open_clip's own
``encode_text``, with the context vectors in rows of its embedding that nothing else uses.

Shape letters: C classes, L positions, l context tokens, w token width.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from fedmoe.cli import main
from fedmoe.client.module import ClientModule
from fedmoe.config import ClipConfig, PromptConfig
from fedmoe.errors import UserError
from fedmoe.export.head import load_head
from fedmoe.io import read_jsonl
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner, template_features, word_embeddings
from fedmoe.models.text_tower import require_prompts

pytest.importorskip("tokenizers")
from tokenizer_helpers import write_tokenizer

NAMES = ["Cat", "two_dog"]
CONFIGS = Path(__file__).parents[1] / "configs"
WINDOW = 14
# Of each kind of open_clip's text encoders: its text_cfg, as in open_clip's model_configs, and what its tokenizer puts
# in front of a text, behind it, and behind that as padding.
KINDS: dict[str, tuple[dict[str, Any], list[str], list[str], str]] = {
    "siglip": (
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "tokenizer_kwargs": {"clean": "canonicalize"}},
        *([], ["</s>"], "</s>"),
    ),
    "siglip2": (
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "tokenizer_kwargs": {"clean": "canonicalize"}},
        *([], ["<eos>"], "<pad>"),
    ),
    "clipa": (
        {"no_causal_mask": True, "pool_type": "last", "tokenizer_kwargs": {"strip_sep_token": True}},
        *(["[CLS]"], ["[PAD]"], "[PAD]"),
    ),
    "xlm": ({"pool_type": "eos", "eos_id": 2}, ["<s>"], ["</s>"], "<pad>"),
    "mt5": ({"pool_type": "eos", "eos_id": 1, "tokenizer_kwargs": {"clean": "canonicalize"}}, [], ["</s>"], "<pad>"),
}
CLIPS_OWN: dict[str, dict[str, Any]] = {
    "mobileclip": {"no_causal_mask": True},
    "custom blocks": {"qk_norm": True, "scale_fc": True},
    "first of all": {"no_causal_mask": True, "pool_type": "first"},
}


def spread(clip: FrozenCLIP) -> FrozenCLIP:
    """Weights so large that every part of the text tower matters, in float64."""
    clip, generator = deepcopy(clip).double(), torch.Generator().manual_seed(1)
    for name, parameter in clip.model.named_parameters():
        if not name.startswith("visual") and not name.startswith("logit"):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator).double(), alpha=0.1)
    return clip


def settings_of(kind: str, folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Writes a tiny model of this kind; returns the settings of clip and the number of each piece of its tokenizer."""
    text, numbers, more = KINDS[kind][0], write_tokenizer(folder / "tokenizer", kind), {}
    if "siglip" in kind:
        more = {"custom_text": True, "init_logit_bias": -10.0}
    changes: dict[str, Any] = {f"text_{key}": value for key, value in text.items()}
    changes |= {"text_context_length": WINDOW, "text_vocab_size": 200, "text_hf_tokenizer_name": "some/where"}
    (folder / "model.json").write_text(json.dumps(tiny_config("vit", **changes, **more)))
    named = {"model_config": str(folder / "model.json"), "tokenizer": str(folder / "tokenizer"), "pretrained": None}
    return named, numbers


def make(kind: str, folder: Path) -> tuple[FrozenCLIP, dict[str, int]]:
    settings, numbers = settings_of(kind, folder)
    return spread(FrozenCLIP.load(ClipConfig(**settings))), numbers


def open_clips(clip: FrozenCLIP, ids: Tensor, contexts: Tensor, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Features of tokens [C, L], of which those in ``rows`` [C or 1, l] have the context vectors as embeddings, by
    open_clip itself; and the gradient of their sum with weights, with respect to the contexts [l, w] or [C, l, w]."""
    model = deepcopy(clip.model)
    weight = getattr(model, "text", model).token_embedding.weight.requires_grad_(True)
    picked = torch.tensor(rows) if contexts.ndim == 3 else torch.tensor(rows[0])
    with torch.no_grad():
        weight[picked] = contexts
    features = normalize(model.encode_text(ids), dim=-1)
    (features * probe(features)).sum().backward()
    return features.detach(), weight.grad[picked]


def ours(clip: FrozenCLIP, contexts: Tensor, **config: Any) -> tuple[Tensor, Tensor]:
    learner = PromptLearner(clip, NAMES, PromptConfig(length=contexts.shape[-2], **config))
    contexts = contexts.clone().requires_grad_(True)
    features = learner(contexts)
    (features * probe(features)).sum().backward()
    assert contexts.grad is not None
    return features.detach(), contexts.grad


def probe(features: Tensor) -> Tensor:
    return torch.randn(features.shape, generator=torch.Generator().manual_seed(4)).to(features)


def contexts_for(clip: FrozenCLIP, *shape: int) -> Tensor:
    return torch.randn(*shape, clip.token_width, generator=torch.Generator().manual_seed(2)).double() * 0.3


def placed(position: str, front: list[int], context: list[int], name: list[int], rest: list[int]) -> list[int]:
    half = len(context) // 2
    return (
        front
        + {
            "end": context + name,
            "middle": context[:half] + name + context[half:],
            "front": name + context,
        }[position]
        + rest
    )


@pytest.mark.parametrize(
    ("position", "class_specific"), [("end", False), ("middle", False), ("front", False), ("middle", True)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_open_clips(kind: str, position: str, class_specific: bool, tmp_path: Path) -> None:
    clip, numbers = make(kind, tmp_path)
    _, front, behind, pad = KINDS[kind]
    word, dot = ("", ["."]) if kind == "clipa" else ("▁", ["."] if kind == "xlm" else [])
    # CLIPA's tokenizer lowers the case; the multilingual one keeps it, and has pieces for small letters alone.
    cat = ["▁", "<unk>", "a", "t"] if kind == "xlm" else [f"{word}cat"]
    pieces = [cat, [f"{word}two", f"{word}dog"]]
    rows = [[150 + 10 * c + j for j in range(4)] for c in range(2)] if class_specific else [[150, 151, 152, 153]] * 2
    ids = []
    for c, name in enumerate(pieces):
        parts = ([numbers[piece] for piece in part] for part in (front, name, [*dot, *behind]))
        first, own, last = parts
        whole = placed(position, first, rows[c], own, last)
        ids.append(whole + [numbers[pad]] * (WINDOW - len(whole)))
    contexts = contexts_for(clip, 2, 4) if class_specific else contexts_for(clip, 4)
    expected = open_clips(clip, torch.tensor(ids), contexts, rows)
    for text_pass in ("shared", "cut", "full"):
        found = ours(clip, contexts, position=position, class_specific=class_specific, text_pass=text_pass)
        for mine, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", CLIPS_OWN)
def test_towers_with_clips_tokenizer(kind: str, tmp_path: Path) -> None:
    changes = {f"text_{key}": value for key, value in CLIPS_OWN[kind].items()}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(tiny_config("vit", custom_text=True, text_context_length=WINDOW, **changes)))
    clip = spread(FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None)))
    rows = [[40000, 40001, 40002]]
    ids = open_clip.SimpleTokenizer(context_length=WINDOW)(["X X X Cat.", "X X X two dog."])
    ids[:, 1:4] = torch.tensor(rows)
    contexts = contexts_for(clip, 3)
    expected = open_clips(clip, ids, contexts, rows)
    for text_pass in ("shared", "full"):
        for mine, reference in zip(ours(clip, contexts, text_pass=text_pass), expected, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_templates_and_words(kind: str, tmp_path: Path) -> None:
    clip, numbers = make(kind, tmp_path)
    sentence = clip.tokenize(["a photo of a dog"])
    expected = normalize(clip.model.encode_text(sentence), dim=-1)
    torch.testing.assert_close(template_features(clip, ["dog"], "a photo of a {class}"), expected)
    words = ["a", "photo", "of", "a"]
    if kind != "clipa":
        words = [f"▁{word}" for word in words]
    if kind == "siglip2":
        words[0] = "a"  # no ▁ before the first word
    embedding = clip.text.token_embedding.weight[[numbers[word] for word in words]]
    assert torch.equal(word_embeddings(clip, "a photo of a", "prompt.init"), embedding.float())
    learner = PromptLearner(clip, ["dog"], PromptConfig(length=2))
    torch.testing.assert_close(learner.sentences("a photo of a {class}", 2)(embedding[:2]), expected)


def test_logits_have_siglips_bias(tmp_path: Path) -> None:
    clip, _ = make("siglip", tmp_path)
    clip = clip.float()
    client = ClientModule(clip, PromptLearner(clip, NAMES, PromptConfig(init="a photo of a")), method=PromptFL())
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, _ = clip.model.get_logits(images, clip.tokenize(["a photo of a Cat.", "a photo of a two_dog."]))
    assert float(clip.model.logit_bias) == -10
    with torch.no_grad():
        torch.testing.assert_close(client(images), expected, rtol=1e-4, atol=1e-4)


# Which models of open_clip


def test_every_text_encoder_of_open_clip_is_taken_or_refused_with_a_reason() -> None:
    refused = {}
    for name in open_clip.list_models():
        try:
            require_prompts(open_clip.get_model_config(name), name)
        except UserError as error:
            refused[name] = str(error)
    coca = {name for name in refused if name.startswith("coca_")}
    assert coca == {name for name in open_clip.list_models() if "coca" in name}
    assert all("CoCa" in refused[name] for name in coca)
    others = refused.keys() - coca
    assert all(name.startswith(("roberta-", "xlm-roberta-", "mt5-", "nllb-")) for name in others)
    assert all("Hugging Face" in refused[name] for name in others)
    if open_clip.__version__ == "3.3.0":
        assert (len(open_clip.list_models()), len(coca), len(others)) == (144, 4, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"pool_type": "none"}, "rule 'none'"),
        ({"pool_type": "first"}, "rule 'first'"),
        ({"embed_cls": True}, "CoCa"),
        ({"hf_model_name": "roberta-base"}, "roberta-base"),
    ],
)
def test_towers_that_no_prompt_reaches(text: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        require_prompts({"embed_dim": 8, "text_cfg": text}, "m")


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        FrozenCLIP.load(ClipConfig(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tokenizers_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    message = refusal(architecture="ViT-B-16-SigLIP", pretrained=None)
    assert "The tokenizer timm/ViT-B-16-SigLIP of clip.architecture = ViT-B-16-SigLIP could not be fetched" in message
    assert "set clip.tokenizer to a folder with its tokenizer.json" in message
    assert "RN50 has CLIP's own; valid is null" in refusal(architecture="RN50", pretrained=None, tokenizer="here")

    settings, _ = settings_of("siglip", tmp_path)
    assert "some/where, which is not fetched" in refusal(**settings | {"tokenizer": None})
    assert "No such file" in refusal(**settings | {"tokenizer": str(tmp_path / "nowhere")})
    rules, config = (tmp_path / "tokenizer" / name for name in ("tokenizer.json", "tokenizer_config.json"))
    config.write_text("{}")
    assert "names no 'pad_token'" in refusal(**settings)
    config.write_text("{")
    assert "cannot be read" in refusal(**settings)
    config.write_text(json.dumps({"pad_token": {"content": "</s>"}}))
    small = json.loads((tmp_path / "model.json").read_text())
    small["text_cfg"]["vocab_size"] = 11
    (tmp_path / "model.json").write_text(json.dumps(small))
    clip = FrozenCLIP.load(ClipConfig(**settings))
    with pytest.raises(UserError, match=r"the token '▁seven', number \d+; valid are the 11"):
        clip.tokenize(["a photo of seven"])
    with pytest.raises(UserError, match="'!!' has no tokens"):
        PromptLearner(clip, ["!!"], PromptConfig(length=2))
    rules.write_text("{}")
    assert "cannot be read" in refusal(**settings)


def test_another_tokenizer_is_another_model(tmp_path: Path) -> None:
    settings, _ = settings_of("siglip", tmp_path)
    prints = [FrozenCLIP.load(ClipConfig(**settings)).fingerprint for _ in range(2)]
    write_tokenizer(tmp_path / "tokenizer", "siglip2")
    prints.append(FrozenCLIP.load(ClipConfig(**settings)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


# From the command line


def test_a_run_with_a_tiny_siglip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, _ = settings_of("siglip", tmp_path)
    options = [f"--clip.{key}={'null' if value is None else value}" for key, value in settings.items()]
    run = tmp_path / "run"
    small = ["--federation.clients=2", "--federation.rounds=1", "--federation.local_epochs=1", "--prompt.length=2"]
    small += ["--data.subset.train=100", "--data.subset.test=50"]
    args = [f"--config={CONFIGS / 'embedded.yaml'}", *options, *small, "--method=PFedMoAP", "--method.num_experts=1"]
    folders = [f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={tmp_path / 'cache'}"]
    assert (
        main(["fit", *args, *folders, "--method.gating_dim=12", "--method.heads=2", "--runtime.accelerator=cpu"]) == 0
    )
    trained = read_jsonl(run / "rounds.jsonl")[-1]["accuracy"]["mean"]
    assert main(["evaluate", str(run)]) == 0
    assert f"{trained:.2f}" in capsys.readouterr().out
    Image.new("RGB", (32, 32), "white").save(tmp_path / "image.png")
    assert main(["predict", str(run), "--client=0", str(tmp_path / "image.png"), "--format=json", "--top=10"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert main(["export", str(run), "--client=0", str(tmp_path / "out")]) == 0
    head, clip = load_head(tmp_path / "out"), FrozenCLIP.load(ClipConfig(**settings))
    assert head.settings["logit_bias"] == -10
    image = clip.preprocess(Image.open(tmp_path / "image.png")).unsqueeze(0)
    logits = head(clip.encode_image(image))[0]
    assert float(logits.max()) < 20  # similarities are below 1, the bias is -10
    chosen = predicted["images"][0]["classes"] if isinstance(predicted, dict) else predicted[0]["classes"]
    assert chosen[0]["class"] == head.class_names[int(logits.argmax())]
