"""Differential privacy of what clients send, for each client and against everybody else, including the server.

Mechanism ``upload`` (table 6 of the paper). In each local step the gradient of what is uploaded (the method's shared
parameters: the prompt) is clipped to the l2 norm C, and N(0, sigma^2) is added to each coordinate of the upload. The
client predicts with its own prompt without the noise; its gate is trained as usual and stays on the client.

    Guarantee: given all that the client was sent before, each upload is (epsilon, delta)-differentially private for
    replacing the client's WHOLE data set by any other of the same size, which includes replacing a single example.

    Why: local training starts from the shared parameters that the server sent. SGD with momentum and coupled weight
    decay is linear in the start and in the clipped gradients, so two runs on any two data sets differ by at most
    Delta = 2 C sum_s |a_s| (``sgd_sensitivity``), and sigma = z Delta. What the client keeps (the gate, prompt vectors
    that stay) may depend on its data in any way: it affects the upload only through clipped gradients.

    epsilon is per upload. k uploads of a client compose: the run reports their total epsilon at the same delta.

    Methods for which this does not hold are refused: those that upload anything besides the prompt, whose local
    training does not start from what the server sent, or whose optimizer is not SGD.

Mechanism ``dpsgd``. In each local step each example's gradient is clipped to C, jointly over all trained parameters,
and N(0, (2 C z)^2) is added to each coordinate of the sum. The gate must be clipped and noised together with the
prompt: a gate without noise would carry one example's influence into the other examples' gradients of the prompt.

    Guarantee: everything that a client uploads during the whole run is together (epsilon, delta)-differentially private
    for replacing ONE example by any other.

    Why: an epoch's batches are disjoint, so an example is in one step of each epoch, whose sum it changes by at most
    2 C; given the previous steps, the other steps do not depend on it. So an epoch is one Gaussian mechanism, and k
    epochs are k of them. No amplification by sampling is claimed: batches are a shuffled pass, not Poisson samples.
    z is set so that the client that takes part in the most rounds (cohorts follow from the seed) stays within the
    budget; the others spend less.

    Methods whose loss uses all of the client's data at once, or that upload anything that is not a trained parameter,
    are refused.

Public and not protected under either mechanism: the number n_i of a client's examples (it is the upload's weight, and
determines the number of steps), batch size, epochs, learning rates; whether a client takes part or fails, and how long
it takes. Rounding is not part of the analysis. A client's own predictions, and fine-tuning for them, are made where its
data are.

In a simulation, the noise derives from (seed, "privacy", round, client), so that a run can be repeated: anyone who
knows the seed can remove the noise. A deployment must draw it from a secret source. The accuracies, losses, a method's
own metrics and the client states in the run folder belong to the experimenter and are not protected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from fedmoe.client.module import ClientModule
from fedmoe.client.work import Protection
from fedmoe.config import FederationConfig, OptimConfig, PrivacyConfig
from fedmoe.errors import UserError
from fedmoe.privacy.accounting import noise_multiplier, opacus_epsilon, sgd_sensitivity, total_epsilon
from fedmoe.privacy.gradients import ClippedShared, NoisySum, WithheldData
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import Scope, part_of
from fedmoe.protocol.records import ClientState, Downlink, Loadout, Update
from fedmoe.seeds import torch_generator
from fedmoe.server.sampling import sample_cohort


class Privacy(Protection):
    """No protection (mechanism ``none``), and the base class of the others. ``begin``, ``check`` and ``protect`` work
    on the client; ``record`` and ``summary`` keep account of the budget on the server.

    Args:
        config: the settings; None: their defaults, no protection.
        federation: rounds, participation and epochs, already adapted by ``method.schedule``.
        seed: the run's seed.

    Attributes:
        multiplier: noise multiplier z, the noise's standard deviation in units of the sensitivity.
        sends: whether the method uploads anything; found by ``rehearse``.
    """

    active: ClassVar[bool] = False
    multiplier = 0.0
    sends = True

    def __init__(self, config: PrivacyConfig | None, federation: FederationConfig, seed: int) -> None:
        config = config or PrivacyConfig()
        self.config, self.federation, self.seed = config, federation, seed
        self.epsilon = math.inf if config.epsilon is None else config.epsilon
        self.clip = math.inf if config.clip is None else config.clip

    def fits(self, method: Method, optim: OptimConfig) -> None:
        """Refuse methods and optimizers for which the guarantee does not hold, as far as the settings show.

        Raises:
            UserError: the method or the optimizer does not fit the mechanism.
        """

    def _require_plain(self, optim: OptimConfig) -> None:
        """Refuse what no mechanism here protects, or where rounding would outweigh the noise."""
        for key, value, valid, why in (
            ("federation.share_momentum", self.federation.share_momentum, False, "sends sums of gradients unprotected"),
            ("optim.precision", optim.precision, "float32", "rounds what noise is added to"),
        ):
            if value != valid:
                raise UserError(
                    f"privacy.mechanism is {self.config.mechanism!r}, but {key} = {str(value).lower()} {why}; valid is "
                    f"{str(valid).lower()}."
                )

    def releases(self, participations: int) -> int:
        """The number of Gaussian mechanisms that a client has used after training in that many rounds."""
        return 0

    def record(self, most_rounds: int, noise_stds: Sequence[float]) -> dict[str, float | None] | None:
        """The entry in a round's record: what the client with the most rounds has spent so far, and the noise."""
        if not self.active:
            return None
        spent = total_epsilon(self.multiplier, self.releases(most_rounds), self.config.delta)
        return {"epsilon": _finite(spent), "noise_std": max(noise_stds, default=0.0)}

    def summary(self, most_rounds: int) -> dict[str, Any] | None:
        """The entry in summary.json, including a readable sentence; an infinite epsilon is null."""
        if not self.active:
            return None
        config, releases = self.config, self.releases(most_rounds)
        by_opacus = opacus_epsilon(self.multiplier, releases, config.delta)
        found: dict[str, Any] = {
            "mechanism": config.mechanism,
            "epsilon": config.epsilon,
            "delta": config.delta,
            "clip": config.clip,
            "noise_multiplier": self.multiplier,
            "participations": most_rounds,
            "releases": releases,
            "total_epsilon": _finite(total_epsilon(self.multiplier, releases, config.delta)),
            "opacus_epsilon": None if by_opacus is None else _finite(by_opacus),
            "opacus_note": "install fedmoe[privacy] for Opacus's own bound" if by_opacus is None else None,
        }
        return found | {"text": _in_words(found)}


class UploadNoise(Privacy):
    """Mechanism ``upload``: clipped gradients of the shared parameters, and noise on their uploaded values."""

    active = True

    def __init__(self, config: PrivacyConfig, federation: FederationConfig, seed: int) -> None:
        super().__init__(config, federation, seed)
        self.multiplier = noise_multiplier(self.epsilon, config.delta)

    def fits(self, method: Method, optim: OptimConfig) -> None:
        self._require_plain(optim)
        own = type(method).optimizer is not Method.optimizer
        if optim.optimizer != "sgd" or own:
            found = f"{type(method).__name__}'s own" if own else repr(optim.optimizer)
            raise UserError(
                f"privacy.mechanism is 'upload', whose noise follows from the steps of SGD, but the optimizer is "
                f"{found}; valid is optim.optimizer = sgd, or dpsgd, or none."
            )

    def begin(self, module: ClientModule, state: ClientState, downlink: Downlink, round: int) -> None:
        if downlink.parameters:  # without them, nothing may be uploaded
            module.gradients = ClippedShared(self.clip)

    def check(self, module: ClientModule, downlink: Downlink, start: Loadout, update: Update) -> None:
        name, trained = type(module.method).__name__, module.export()
        slow = [part.name for part in module.parts(Scope.SHARED) if part.rate != "prompt_lr"]
        sent = sorted(tensor for tensor in update.parameters if part_of(tensor) in slow)
        if sent:
            raise UserError(
                f"privacy.mechanism is 'upload', which adds noise to prompts only, but {name} also uploads "
                f"{', '.join(sent)}; valid is a method that uploads its prompt alone, dpsgd, or none."
            )
        for key, value in update.parameters.items():
            given, began = downlink.parameters.get(key), start.parameters.get(key)
            known_start = given is not None and began is not None and torch.equal(given.cpu(), began.cpu())
            if not (known_start and key in trained and torch.equal(value.cpu(), trained[key])):
                raise UserError(
                    f"privacy.mechanism is 'upload', but a client of {name} does not train and upload the {key} that "
                    "the server sent; valid is a method that does, such as PromptFL or PFedMoAP, or dpsgd, or none."
                )

    def protect(self, module: ClientModule, update: Update, round: int) -> tuple[Update, float]:
        if not update.parameters or self.multiplier == 0:
            return update, 0.0
        assert isinstance(module.gradients, ClippedShared)
        optim, rates = module.optim, module.gradients.rates
        noise = self.multiplier * sgd_sensitivity(rates, optim.momentum, optim.weight_decay, self.clip)
        generator = torch_generator(self.seed, "privacy", round, update.client_id)
        noisy = {
            name: tensor + noise * torch.randn(tensor.shape, generator=generator)
            for name, tensor in update.parameters.items()
        }
        return replace(update, parameters=noisy), noise

    def releases(self, participations: int) -> int:
        return participations if self.sends else 0


class DPSGD(Privacy):
    """Mechanism ``dpsgd``: clipped per-example gradients, and noise in each step."""

    active = True

    def __init__(self, config: PrivacyConfig, federation: FederationConfig, seed: int) -> None:
        super().__init__(config, federation, seed)
        self.most_rounds = max(participations(federation, seed).values(), default=0)
        mechanisms = self.releases(self.most_rounds)
        self.multiplier = noise_multiplier(self.epsilon, config.delta) * math.sqrt(mechanisms)

    def fits(self, method: Method, optim: OptimConfig) -> None:
        self._require_plain(optim)
        if type(method).cohort is not Method.cohort:
            raise UserError(
                f"privacy.mechanism is 'dpsgd', whose noise is set for cohorts that are known beforehand, but "
                f"{type(method).__name__} samples its own; valid is a method that does not, or upload, or none."
            )

    def begin(self, module: ClientModule, state: ClientState, downlink: Downlink, round: int) -> None:
        if state.rounds_seen >= self.most_rounds:
            raise UserError(
                f"Client {module.client_id} would train in {state.rounds_seen + 1} rounds, but the noise of privacy."
                f"mechanism = 'dpsgd' was set for {self.most_rounds}; valid is no more rounds than that."
            )
        generator = torch_generator(self.seed, "privacy", round, module.client_id)
        module.gradients = NoisySum(self.clip, self._noise, generator)
        module.data = WithheldData()  # type: ignore[assignment]

    @property
    def _noise(self) -> float:
        return 2 * self.clip * self.multiplier if self.multiplier else 0.0  # also without clipping

    def check(self, module: ClientModule, downlink: Downlink, start: Loadout, update: Update) -> None:
        trained = module.export()
        strange = [
            name
            for name, sent in update.parameters.items()
            if name not in trained or not torch.equal(sent.cpu(), trained[name])
        ]
        if strange:
            raise UserError(
                f"privacy.mechanism is 'dpsgd', which protects trained parameters only, but {', '.join(strange)} of "
                f"{type(module.method).__name__}'s upload is none; valid is a method that uploads what it trains."
            )

    def protect(self, module: ClientModule, update: Update, round: int) -> tuple[Update, float]:
        return update, self._noise

    def releases(self, participations: int) -> int:
        return participations * self.federation.local_epochs


_MECHANISMS: Mapping[str, type[Privacy]] = {"none": Privacy, "upload": UploadNoise, "dpsgd": DPSGD}


def build_privacy(config: PrivacyConfig | None, federation: FederationConfig, seed: int) -> Privacy:
    """The mechanism that the settings ask for."""
    config = config or PrivacyConfig()
    return _MECHANISMS[config.mechanism](config, federation, seed)


def participations(federation: FederationConfig, seed: int) -> Counter[int]:
    """For each client, the number of rounds of the run in which it is in the cohort."""
    cohorts = (
        sample_cohort(federation.participants, federation.participation, seed, number)
        for number in range(1, federation.rounds + 1)
    )
    return Counter(client for cohort in cohorts for client in cohort)


def _in_words(summary: Mapping[str, Any]) -> str:
    if not summary["releases"]:
        return f"privacy ({summary['mechanism']}): nothing was sent that needs protection"

    def number(epsilon: float | None) -> str:
        return "∞" if epsilon is None else f"{epsilon:.4g}"

    budget = {"upload": "each upload", "dpsgd": "the run"}[summary["mechanism"]]
    told = f"privacy ({summary['mechanism']}): ε = {number(summary['epsilon'])} for {budget}, δ = {summary['delta']:g}"
    total = f"ε = {number(summary['total_epsilon'])} by exact composition"
    by_opacus = summary["opacus_note"] or f"{number(summary['opacus_epsilon'])} by Opacus's RDP accountant"
    return f"{told}; spent by the client with the most rounds ({summary['participations']}): {total}, {by_opacus}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
