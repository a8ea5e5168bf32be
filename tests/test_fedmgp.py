"""FedMGP: its release's values and rounds, draws and diversity by hand, and independent prompting as a special case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from golden_helpers import case_client, difference, fit, gradients, read_case, with_rows

from fedmoe.errors import UserError
from fedmoe.methods import FedMGP, FedVPT
from fedmoe.methods.fedmgp import draw, mean_cosine, overwritten, similarity
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext, Update
from fedmoe.seeds import torch_generator
from fedmoe.server.state import Known, ServerState

CONTEXT = RoundContext(2, (0, 1, 2), 0)
NAMES = {"text": "ctx", "visual": "vpt"}  # ours, the release's


def test_values_are_the_releases(golden_clips: dict[str, FrozenCLIP]) -> None:
    settings, golden = read_case("fedmgp_vit")
    clip = with_rows(golden_clips["vit"], golden)
    method = FedMGP(settings["num_groups"], settings["topk"], diversity="l1", weights="equal")
    module = case_client(clip, settings, method, 4)
    module.load(0, Loadout({"text": golden["ctx"], "visual": golden["vpt"]}))
    images, labels = golden["images"], golden["labels"].long()
    tokens = module.encoder.encode(images)
    with torch.no_grad():
        text, found = method.features(module, tokens)
        assert difference(text, golden["text_features"]) < 1e-5
        assert difference(found, golden["image_features"]) < 1e-5
        assert difference(module.logit_scale * found @ text.mT, golden["logits_groups"]) < 1e-5
        assert difference(module(images), golden["logits"]) < 1e-5
        for prediction, name in (("largest", "logits_max_logits"), ("features", "logits_feature_average")):
            method.prediction = prediction  # type: ignore[assignment]
            assert difference(module(images), golden[name]) < 1e-5
        method.prediction = "mean"
        for kind in ("l1", "l2", "cos"):
            for features, name in ((text, "text"), (found, "vision")):
                value = method._diversities[kind](features)[None]
                assert difference(value, golden[f"diversity_{kind}_{name}_raw"]) < 2e-5
        assert difference(method.diversity_term(text, found)[None], golden["loss_diversity"]) < 1e-5
    for lmbda, suffix in ((0.0, "_ce"), (1.0, "")):
        method.lmbda = lmbda
        loss = method.loss(module, tokens, labels)
        assert difference(loss[None], golden[f"loss{suffix}"]) < 1e-5
        slopes = gradients(module, loss)
        for ours, theirs in NAMES.items():
            # Both in float32: 1.2e-5 of the largest entry on one of the processors where this ran.
            assert difference(slopes[ours], golden[f"grad{suffix}.{theirs}"]) < 2e-5
    fit(module, tokens, labels, settings["steps"])
    assert difference(torch.stack(module.losses), golden["after.losses"]) < 1e-5
    after = module.export()
    for ours, theirs in NAMES.items():
        assert difference(after[ours], golden[f"after.{theirs}"]) < 1e-5
    with torch.no_grad():
        assert difference(module(images), golden["after.logits"]) < 1e-5


def test_rounds_are_the_releases_given_what_it_drew(golden_clips: dict[str, FrozenCLIP]) -> None:
    """Similarities, probabilities, the server's mean without weights, and what clients overwrite."""
    settings, golden = read_case("fedmgp_vit")
    method, server = FedMGP(diversity="l1", weights="equal"), ServerState({})
    clients = range(settings["num_clients"])
    for number in range(1, settings["server_rounds"] + 1):
        place = f"server.round{number}."
        if number > 1:
            for name in NAMES.values():
                for i in clients:
                    shared = golden[f"server.round{number - 1}.global.{name}"]
                    found = similarity(golden[f"{place}in.{name}"][i], shared)
                    assert difference(found, golden[f"{place}similarity.{name}"][i]) < 1e-5
                    chances = (found / settings["selection_temperature"]).softmax(dim=0)
                    assert difference(chances, golden[f"{place}probability.{name}"][i]) < 1e-5
        updates = []
        for i in clients:
            sent = {
                f"global_{ours}": golden[f"{place}in.{theirs}"][i][golden[f"{place}selected.{theirs}"][i].long()]
                for ours, theirs in NAMES.items()
            }
            updates.append(Update(i, sent, 10 * (i + 1)))
        method.aggregate(server, updates, CONTEXT)
        for ours, theirs in NAMES.items():
            assert difference(server.shared[f"global_{ours}"], golden[f"{place}global.{theirs}"]) < 1e-6
        server.clients = {i: Known(number) for i in clients}
        for i in clients:
            own = {ours: golden[f"{place}in.{theirs}"][i] for ours, theirs in NAMES.items()}
            drawn = torch.stack([golden[f"{place}selected.{theirs}"][i] for theirs in NAMES.values()]).float()
            state = ClientState({**own, "drawn": drawn}, rounds_seen=number)
            for downlink in (method.deploy(server, i, CONTEXT), method.configure(server, i, CONTEXT)):
                loadout = method.inference(state, downlink)
                for ours, theirs in NAMES.items():
                    assert difference(loadout.parameters[ours], golden[f"{place}out.{theirs}"][i]) < 1e-6


# By hand


def test_similarity_is_the_largest_cosine_of_whole_groups() -> None:
    """Groups e_0, e_1, -e_0 and globals 2 e_0 and (e_0 + e_1): 1, 1 / sqrt 2, and -1 / sqrt 2 (of -1 and that)."""
    groups = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]).unsqueeze(1)
    found = similarity(groups, torch.tensor([[2.0, 0], [1, 1]]).unsqueeze(1))
    assert found.tolist() == pytest.approx([1.0, 0.5**0.5, -(0.5**0.5)], rel=1e-6)


@pytest.mark.parametrize(("shared", "temperature"), [(False, 1.0), (True, 1.0), (True, 0.5)])
def test_groups_are_drawn_in_turn_without_replacement(shared: bool, temperature: float) -> None:
    """Frequencies of all ordered pairs of three against p_i p_j / (1 - p_i), 6,000 draws."""
    torch.manual_seed(0)
    groups = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]).unsqueeze(1)
    given = torch.tensor([[1.0, 0]]).unsqueeze(1) if shared else None
    scores = torch.tensor([1.0, 0.0, -1.0]) / temperature if shared else torch.zeros(3)
    chance = scores.softmax(dim=0).tolist()
    count = Counter(tuple(draw(groups, given, 2, temperature).tolist()) for _ in range(6000))
    for i in range(3):
        for j in range(3):
            expected = 0.0 if i == j else chance[i] * chance[j] / (1 - chance[i])
            assert count[i, j] / 6000 == pytest.approx(expected, abs=0.02)


def test_overwriting_and_diversity_by_hand() -> None:
    groups = torch.arange(3.0).reshape(3, 1, 1)
    found = overwritten(groups, torch.tensor([2, 0]), torch.tensor([[[7.0]], [[8.0]]]))
    assert found.flatten().tolist() == [8.0, 1.0, 7.0]
    assert groups.flatten().tolist() == [0.0, 1.0, 2.0]
    # Three groups, one row each: pairs with cosine 0, 1 and 0.
    features = torch.tensor([[[1.0, 0]], [[0, 1]], [[1, 0]]])
    assert float(mean_cosine(features)) == pytest.approx(1 / 3)
    assert float(FedMGP._diversities["l1"](features)) == pytest.approx(-2 / 3)  # 1, 0, 1 a coordinate
    assert float(FedMGP._diversities["l2"](features)) == pytest.approx(-(2**0.5 + 1e-4 + 2**0.5) / 3, rel=1e-4)


def test_the_diversity_term_is_the_mean_of_both_modalities() -> None:
    text, images = torch.tensor([[[1.0, 0]], [[1, 0]]]), torch.tensor([[[1.0, 0]], [[0.6, 0.8]]])
    assert float(FedMGP().diversity_term(text, images)) == pytest.approx((1 + 0.6) / 2)


def test_the_papers_mean_is_weighted_by_examples() -> None:
    """One group of 30 examples at 1, one of 10 at 5: 2, and 3 without weights."""
    updates = [Update(i, {"global_text": torch.full((1, 1, 2), v)}, n) for i, v, n in ((0, 1.0, 30), (1, 5.0, 10))]
    for method, expected in ((FedMGP(), 2.0), (FedMGP(weights="equal"), 3.0)):
        server = ServerState({})
        method.aggregate(server, updates, CONTEXT)
        assert torch.equal(server.shared["global_text"], torch.full((1, 1, 2), expected))


@pytest.mark.parametrize(("kind", "moves_apart"), [("cosine", True), ("l1", False), ("l2", False), ("cos", False)])
def test_the_papers_term_moves_groups_apart_and_the_releases_together(kind: str, moves_apart: bool) -> None:
    """One small step down the term alone, on free unit features."""
    method = FedMGP(diversity=kind)  # type: ignore[arg-type]
    free = torch.randn(3, 4, 8, generator=torch_generator(1)).requires_grad_()

    def unit() -> torch.Tensor:
        return torch.nn.functional.normalize(free, dim=-1)

    before = float(mean_cosine(unit().detach()))
    (slope,) = torch.autograd.grad(method.diversity_term(unit(), unit()), free)
    with torch.no_grad():
        free -= 0.1 * slope
        assert (float(mean_cosine(unit())) < before) == moves_apart


def test_what_is_declared_at_clips_width(golden_clips: dict[str, FrozenCLIP]) -> None:
    """Groups of 2 words and 2 tokens: 5 * 4 vectors are trained, 2 * 4 sent; all start equal, and from words."""
    settings, golden = read_case("fedmgp_vit")
    clip = with_rows(golden_clips["vit"], golden)
    module = case_client(clip, settings, FedMGP(), 4)
    module.load(0, Loadout())
    one = module.export()
    module.load(3, Loadout())
    other = module.export()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["text"].shape == one["visual"].shape == (5, 2, 64)
    assert one["global_text"].shape == one["global_visual"].shape == (2, 2, 64)
    words = clip.text.token_embedding(clip.tokenize(["a photo"]))[0, 1:3]
    offset = one["text"] - words
    assert float(offset.std()) == pytest.approx(0.01, rel=0.15)
    assert float(one["visual"].std()) == pytest.approx(0.02, rel=0.15)


def test_a_client_that_never_took_part_downloads_nothing() -> None:
    server = ServerState({"global_text": torch.ones(2, 2, 4)}, clients={1: Known(1)})
    method = FedMGP()
    assert method.deploy(server, 0, CONTEXT) == Downlink()
    assert set(method.deploy(server, 1, CONTEXT).parameters) == {"global_text"}
    assert set(method.configure(server, 0, CONTEXT).parameters) == {"global_text"}
    assert method.configure(ServerState({"global_text": torch.ones(2, 2, 4)}), 0, CONTEXT) == Downlink()


def test_one_group_is_independent_prompting(golden_clips: dict[str, FrozenCLIP]) -> None:
    """From the same values: loss, gradients and, after two rounds of two clients, the mean."""
    settings, golden = read_case("fedmgp_vit")
    clip = with_rows(golden_clips["vit"], golden)
    one, plain = FedMGP(1, 1), FedVPT(vectors=2, text_vectors=2)
    ours, other = case_client(clip, settings, one, 4), case_client(clip, settings, plain, 4)
    start = {"text": golden["ctx"][:1], "visual": golden["vpt"][:1]}
    tokens, labels = ours.encoder.encode(golden["images"]), golden["labels"].long()
    states = [ClientState(start), ClientState(start)]
    mine, theirs = ServerState({}), ServerState(dict(start))
    for _ in range(2):
        updates, others = [], []
        for i, part in enumerate((slice(0, 3), slice(3, 4))):
            downlink = one.configure(mine, i, CONTEXT)
            ours.load(i, one.start(states[i], downlink))
            other.load(i, plain.start(ClientState(), plain.configure(theirs, i, CONTEXT)))
            for module in (ours, other):
                fit(module, tokens[part], labels[part], 2)
            update, states[i] = one.finish(ours, states[i], downlink, part.stop - part.start)
            updates.append(update)
            others.append(plain.finish(other, ClientState(), Downlink(), part.stop - part.start)[0])
        one.aggregate(mine, updates, CONTEXT)
        plain.aggregate(theirs, others, CONTEXT)
        mine.clients = {0: Known(1), 1: Known(1)}
        for name in NAMES:
            torch.testing.assert_close(mine.shared[f"global_{name}"], theirs.shared[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"groups": 1}, "groups is 1; valid is an integer of at least method.sent = 2"),
        ({"sent": 0}, "sent is 0"),
        ({"vectors": 0}, "vectors is 0"),
        ({"temperature": 0.0}, "temperature is"),
        ({"lmbda": -1.0}, "lmbda is"),
        ({"template": "no name"}, "template is"),
    ],
)
def test_mistakes_are_told(settings: dict[str, int], said: str) -> None:
    make: Callable[..., FedMGP] = FedMGP
    with pytest.raises(UserError, match=f"method.{said}"):
        make(**settings)
