"""Differential privacy of what clients send, for one client at a time and against everybody else, server included.

Mechanism ``upload`` (table 6 of the paper). In each local step the prompt's gradient is clipped to the l2 norm C, and
N(0, sigma^2) is added to each coordinate of the prompt that is uploaded. The client predicts with its own prompt
without the noise; its gate is trained as ever and stays.

    Guarantee: given all that the client was sent before, each upload is (epsilon, delta)-differentially private for
    replacing the client's WHOLE data set by any other of the same size; one example's replacement is a case of it.

    Why: local training starts from the prompt that the server sent. SGD with momentum and coupled weight decay is
    linear in the start and in the clipped gradients, so two runs on any two data sets differ by at most
    Delta = 2 C sum_s |a_s| (``sgd_sensitivity``), and sigma = z Delta. What the client keeps (the gate, prompt vectors
    that stay) may depend on its data in any way: it acts on the upload through clipped gradients only.

    k uploads of a client compose: the run reports their total epsilon at the same delta. epsilon is per upload.

    Methods for which this is not so are refused: those that upload something else beside the prompt, or whose local
    training does not start from the prompt that the server sent (at the coordinates that are uploaded).

Mechanism ``dpsgd``. In each local step each example's gradient is clipped to C, jointly over all trained parameters,
and N(0, (2 C z)^2) is added to each coordinate of the sum. The gate must be clipped and noised with the prompt: a gate
without noise would carry one example's influence into the other examples' gradients of the prompt.

    Guarantee: all that a client uploads during the whole run is (epsilon, delta)-differentially private for replacing
    ONE example by any other.

    Why: an epoch's batches are disjoint, so an example is in one step of each epoch, whose sum it changes by at most
    2 C; given what came before, the other steps do not depend on it. So an epoch is one Gaussian mechanism, and k
    epochs are k of them. No amplification by sampling is claimed: batches are a shuffled pass, not Poisson samples.
    z is set such that the client that takes part in the most rounds (cohorts follow from the seed) keeps to the budget;
    the others spend less.

    Methods whose loss looks at all of the client's data at once, or that upload something that is no trained
    parameter, are refused.

Public under both, not protected: the number n_i of a client's examples (it is the upload's weight, and sets the
number of steps), batch size, epochs, learning rates; that a client takes part, fails, or how long it takes. Rounding is
not part of the analysis. A client's own predictions, and fine-tuning for them, are made where its data are.

In a simulation, the noise derives from (seed, "privacy", round, client), so that a run can be repeated: whoever knows
the seed can take the noise off. A deployment must draw it from a secret source. The accuracies, losses and client
states in the run folder are the experimenter's and are not protected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fedmoe.config import FederationConfig, PrivacyConfig
from fedmoe.errors import UserError
from fedmoe.privacy.accounting import noise_multiplier, opacus_epsilon, sgd_sensitivity, total_epsilon
from fedmoe.privacy.gradients import ClippedPrompt, NoisySum, WithheldData
from fedmoe.protocol.records import ClientState, ClientUpdate, Downlink, Loadout, RoundContext
from fedmoe.seeds import torch_generator
from fedmoe.server.state import ServerState, sample_cohort

if TYPE_CHECKING:
    from fedmoe.client.module import ClientModule
    from fedmoe.client.work import LocalWork, Trained
    from fedmoe.runs.checkpoint import FederationState


class Privacy:
    """No protection (mechanism ``none``), and the base of the others.

    Args:
        config: the settings.
        federation: rounds, participation and epochs, already adapted by ``method.schedule``.
        seed: the run's seed.

    Attributes:
        multiplier: noise multiplier z, the noise's standard deviation in units of the sensitivity.
        sends: whether the method uploads anything; found by ``rehearse``.
    """

    active: ClassVar[bool] = False
    multiplier = 0.0
    sends = True

    def __init__(self, config: PrivacyConfig, federation: FederationConfig, seed: int) -> None:
        self.config, self.federation, self.seed = config, federation, seed
        self.epsilon = math.inf if config.epsilon is None else config.epsilon
        self.clip = math.inf if config.clip is None else config.clip

    def begin(self, module: ClientModule, state: ClientState, downlink: Downlink, context: RoundContext) -> None:
        """Before local training of the client that the module holds."""

    def check(self, module: ClientModule, downlink: Downlink, start: Loadout, update: ClientUpdate) -> None:
        """Refuse an upload that the guarantee does not hold for, after local training.

        Raises:
            UserError: the method does not fit the mechanism.
        """

    def protect(self, module: ClientModule, update: ClientUpdate, context: RoundContext) -> tuple[ClientUpdate, float]:
        """What is sent instead of ``update``, and the standard deviation of the noise in it (or in each step)."""
        return update, 0.0

    def releases(self, participations: int) -> int:
        """The number of Gaussian mechanisms that a client has used after that many rounds."""
        return 0

    def record(self, state: FederationState, trained: Sequence[Trained]) -> dict[str, float | None] | None:
        """A round's entry in its record: what the client with the most rounds has spent so far, and the noise."""
        if not self.active:
            return None
        spent = total_epsilon(self.multiplier, self.releases(_most_rounds(state)), self.config.delta)
        return {"epsilon": _finite(spent), "noise_std": max((done.noise_std for done in trained), default=0.0)}

    def summary(self, state: FederationState) -> dict[str, Any] | None:
        """The entry of summary.json, with a sentence for people; an epsilon that is infinite is null."""
        if not self.active:
            return None
        config, releases = self.config, self.releases(_most_rounds(state))
        by_opacus = opacus_epsilon(self.multiplier, releases, config.delta)
        found: dict[str, Any] = {
            "mechanism": config.mechanism,
            "epsilon": config.epsilon,
            "delta": config.delta,
            "clip": config.clip,
            "noise_multiplier": self.multiplier,
            "participations": _most_rounds(state),
            "releases": releases,
            "total_epsilon": _finite(total_epsilon(self.multiplier, releases, config.delta)),
            "opacus_epsilon": None if by_opacus is None else _finite(by_opacus),
            "opacus_note": "install fedmoe[privacy] for Opacus's own bound" if by_opacus is None else None,
        }
        return found | {"text": _in_words(found)}


class UploadNoise(Privacy):
    """Mechanism ``upload``: clipped gradients of the prompt, and noise on the uploaded prompt."""

    active = True

    def __init__(self, config: PrivacyConfig, federation: FederationConfig, seed: int) -> None:
        super().__init__(config, federation, seed)
        self.multiplier = noise_multiplier(self.epsilon, config.delta)

    def begin(self, module: ClientModule, state: ClientState, downlink: Downlink, context: RoundContext) -> None:
        if downlink.prompt is not None:  # without one, no prompt may be uploaded
            module.gradients = ClippedPrompt(self.clip)

    def check(self, module: ClientModule, downlink: Downlink, start: Loadout, update: ClientUpdate) -> None:
        name = type(module.objective).__name__
        if update.extras:
            raise UserError(
                f"privacy.mechanism is 'upload', which adds noise to prompts only, but {name} also uploads "
                f"{', '.join(sorted(update.extras))}; valid is a method that uploads its prompt alone, dpsgd, or none."
            )
        if update.prompt is None:
            return
        given = downlink.prompt
        known_start = given is not None and given.shape == update.prompt.shape and _leads(given, start.prompt)
        if not (known_start and _leads(update.prompt, module.export_prompt())):
            raise UserError(
                f"privacy.mechanism is 'upload', but a client of {name} does not train and upload the prompt that the "
                "server sent; valid is a method that does, such as PromptFL or PFedMoAP, or dpsgd, or none."
            )

    def protect(self, module: ClientModule, update: ClientUpdate, context: RoundContext) -> tuple[ClientUpdate, float]:
        if update.prompt is None or self.multiplier == 0:
            return update, 0.0
        assert isinstance(module.gradients, ClippedPrompt)
        optim, rates = module.optim, module.gradients.rates
        noise = self.multiplier * sgd_sensitivity(rates, optim.momentum, optim.weight_decay, self.clip)
        generator = torch_generator(self.seed, "privacy", context.round, update.client_id)
        draw = torch.randn(update.prompt.shape, generator=generator)
        return replace(update, prompt=update.prompt + noise * draw), noise

    def releases(self, participations: int) -> int:
        return participations if self.sends else 0


class DPSGD(Privacy):
    """Mechanism ``dpsgd``: clipped gradients of examples, and noise in each step."""

    active = True

    def __init__(self, config: PrivacyConfig, federation: FederationConfig, seed: int) -> None:
        super().__init__(config, federation, seed)
        self.most_rounds = max(participations(federation, seed).values(), default=0)
        mechanisms = self.releases(self.most_rounds)
        self.multiplier = noise_multiplier(self.epsilon, config.delta) * math.sqrt(mechanisms)

    def begin(self, module: ClientModule, state: ClientState, downlink: Downlink, context: RoundContext) -> None:
        if state.rounds_seen >= self.most_rounds:
            raise UserError(
                f"Client {module.client_id} would train in {state.rounds_seen + 1} rounds, but the noise of privacy."
                f"mechanism = 'dpsgd' was set for {self.most_rounds}; valid is no more rounds than that."
            )
        generator = torch_generator(self.seed, "privacy", context.round, module.client_id)
        module.gradients = NoisySum(self.clip, self._noise, generator)
        module.data = WithheldData()  # type: ignore[assignment]

    @property
    def _noise(self) -> float:
        return 2 * self.clip * self.multiplier if self.multiplier else 0.0  # also without clipping

    def check(self, module: ClientModule, downlink: Downlink, start: Loadout, update: ClientUpdate) -> None:
        own = [] if module.personal is None else [p.detach().cpu() for p in module.personal.parameters()]
        strange = [name for name, sent in update.extras.items() if not any(torch.equal(sent.cpu(), p) for p in own)]
        if update.prompt is not None and not _leads(update.prompt, module.export_prompt()):
            strange.append("prompt")
        if strange:
            raise UserError(
                f"privacy.mechanism is 'dpsgd', which protects trained parameters only, but {', '.join(strange)} of "
                f"{type(module.objective).__name__}'s upload is none; valid is a method that uploads what it trains."
            )

    def protect(self, module: ClientModule, update: ClientUpdate, context: RoundContext) -> tuple[ClientUpdate, float]:
        return update, self._noise

    def releases(self, participations: int) -> int:
        return participations * self.federation.local_epochs


_MECHANISMS: Mapping[str, type[Privacy]] = {"none": Privacy, "upload": UploadNoise, "dpsgd": DPSGD}


def build_privacy(config: PrivacyConfig | None, federation: FederationConfig, seed: int) -> Privacy:
    """The mechanism that the settings ask for."""
    config = config or PrivacyConfig()
    return _MECHANISMS[config.mechanism](config, federation, seed)


def participations(federation: FederationConfig, seed: int) -> Counter[int]:
    """Client -> in how many of the run's rounds it is in the cohort."""
    cohorts = (
        sample_cohort(federation.participants, federation.participation, seed, number)
        for number in range(1, federation.rounds + 1)
    )
    return Counter(client for cohort in cohorts for client in cohort)


def rehearse(work: LocalWork, initial: Tensor, clients: Sequence[int]) -> None:
    """Two rounds of the protocol, in which parameters are shifted a little in place of training, and nothing is kept.

    So a method that does not fit the mechanism is found before the first round.

    Raises:
        UserError: it does not fit.
    """
    method, module, privacy = work.method, work.module, work.privacy
    if not privacy.active or not work.config.rounds:
        return
    server, states = ServerState(initial), {client_id: ClientState(initial) for client_id in clients}
    found: list[ClientUpdate] = []
    for number in (1, 2):
        context, updates = RoundContext(number, tuple(clients), work.seed), []
        for client_id, state in states.items():
            downlink = method.configure(server, client_id, context)
            start = method.start(state, downlink)
            module.load(client_id, start, work.seed, data=work.data.client(client_id))
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.01 * (1 + client_id))
            update, states[client_id] = method.finish(module, state, downlink, work.examples(client_id))
            privacy.check(module, downlink, start, update)
            updates.append(update)
        method.aggregate(server, updates)
        found += updates
    privacy.sends = any(update.prompt is not None or update.extras for update in found)


def _in_words(summary: Mapping[str, Any]) -> str:
    if not summary["releases"]:
        return f"privacy ({summary['mechanism']}): nothing was sent that needs it"

    def number(epsilon: float | None) -> str:
        return "∞" if epsilon is None else f"{epsilon:.4g}"

    budget = {"upload": "each upload", "dpsgd": "the run"}[summary["mechanism"]]
    told = f"privacy ({summary['mechanism']}): ε = {number(summary['epsilon'])} for {budget}, δ = {summary['delta']:g}"
    total = f"ε = {number(summary['total_epsilon'])} by exact composition"
    by_opacus = summary["opacus_note"] or f"{number(summary['opacus_epsilon'])} by Opacus's RDP accountant"
    return f"{told}; spent by the client with the most rounds ({summary['participations']}): {total}, {by_opacus}"


def _most_rounds(state: FederationState) -> int:
    return max(client.rounds_seen for client in state.clients)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _leads(part: Tensor, whole: Tensor) -> bool:
    """Whether a prompt or its first vectors [..., k, w] are those of the ``whole`` one [..., l, w]."""
    return part.dim() == whole.dim() and torch.equal(part.cpu(), whole[..., : part.shape[-2], :].cpu())
