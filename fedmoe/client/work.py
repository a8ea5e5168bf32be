"""What a client does by itself: local training, and getting ready to predict."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.config import FederationConfig, PrivacyConfig, RuntimeConfig
from fedmoe.features.client_data import FederatedData
from fedmoe.privacy.mechanism import build_privacy
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import ClientState, ClientUpdate, Downlink, Loadout, RoundContext
from fedmoe.seeds import derive, torch_generator
from fedmoe.server.state import ServerState

# One fit for each client and round: Lightning's remarks on each would bury everything else.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=Warning)
warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.trainer.*", category=UserWarning)


class ClientFailure(Exception):
    """A client's local training came to nothing; the message says why, without the client's name."""


@dataclass(frozen=True)
class Trained:
    """What local training leaves: the upload, what the client keeps, the mean loss over its steps, and the standard
    deviation of the noise that privacy asked for."""

    update: ClientUpdate
    kept: ClientState
    loss: float
    noise_std: float = 0.0


class LocalWork:
    """Turns the one module into each client, trains it and loads it for prediction. Changes no state.

    Args:
        seed: the run's seed; every draw derives from it, the round and the client.
        privacy: what protects uploads; None: nothing.
    """

    def __init__(
        self,
        method: Method,
        module: ClientModule,
        data: FederatedData,
        config: FederationConfig,
        seed: int,
        runtime: RuntimeConfig,
        privacy: PrivacyConfig | None = None,
    ) -> None:
        self.method, self.module, self.data = method, module, data
        self.config, self.seed, self.runtime = config, seed, runtime
        self.privacy = build_privacy(privacy, config, seed)

    def examples(self, client_id: int) -> int:
        """The number n_i of a client's training examples."""
        return len(self.data.client(client_id).train_labels)

    def train(
        self, client_id: int, state: ClientState, downlink: Downlink, context: RoundContext, attempt: int = 0
    ) -> Trained:
        """Local training (Algorithm 1, step 4). Another ``attempt`` draws other batches.

        Raises:
            ClientFailure: the loss or a trained parameter is not finite, or memory ran out.
            UserError: the method does not fit the privacy mechanism.
        """
        start = self.method.start(state, downlink)
        self._load(client_id, start, context)
        self.privacy.begin(self.module, state, downlink, context)
        again = (attempt,) if attempt else ()
        loss = self._fit(client_id, self.config.local_epochs, ("fit", *again), ("batches", *again), context)
        update, kept = self.method.finish(self.module, state, downlink, self.examples(client_id))
        _require_finite([kept.prompt, *kept.personal.values()])
        self.privacy.check(self.module, downlink, start, update)
        update, noise_std = self.privacy.protect(self.module, update, context)
        return Trained(update, kept, loss, noise_std)

    def ready(self, client_id: int, state: ClientState, server: ServerState, context: RoundContext) -> Downlink:
        """Load what the client predicts with; what it downloads for that.

        Where the method asks for it, the module is first fitted to the client's training split.

        Raises:
            ClientFailure: that fit failed; the module holds what it started from.
        """
        downlink = self.method.deploy(server, state, client_id, context)
        loadout = self.method.inference(server, state, downlink)
        self._load(client_id, loadout, context)
        if self.method.fine_tune_epochs and self.examples(client_id):
            try:
                with torch.enable_grad():
                    epochs = self.method.fine_tune_epochs
                    self._fit(client_id, epochs, ("fine-tune",), ("fine-tune batches",), context)
                    _require_finite([self.module.export_prompt(), *self.module.export_personal().values()])
            except ClientFailure:
                self._load(client_id, loadout, context)
                raise
        return downlink

    def _load(self, client_id: int, loadout: Loadout, context: RoundContext) -> None:
        progress = 0.0  # also of a client that joins after the last round: it begins its schedule anew
        if 1 <= context.round <= self.config.rounds:
            progress = (context.round - 1) / self.config.rounds
        self.module.load(client_id, loadout, self.seed, progress, self.data.client(client_id))

    def _fit(
        self,
        client_id: int,
        epochs: int,
        draws: tuple[str | int, ...],
        order: tuple[str | int, ...],
        context: RoundContext,
    ) -> float:
        """Fit the client that the module holds; the mean loss of its steps. ``draws`` and ``order`` name the places
        of the seeds that the loss and the batches derive from."""
        torch.manual_seed(derive(self.seed, *draws, context.round, client_id))  # for methods that draw in their loss
        generator = torch_generator(self.seed, *order, context.round, client_id)
        batches = self.data.client(client_id).training_batches(self.config.batch_size, generator)
        trainer = light_trainer(self.runtime, max_epochs=epochs)
        try:
            trainer.fit(self.module, batches)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ClientFailure(f"memory ran out with federation.batch_size = {self.config.batch_size}") from error
        finally:
            self.module.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
        loss = self.module.mean_loss()
        if not math.isfinite(loss):
            optim = self.module.optim
            raise ClientFailure(
                f"its training loss became {loss} with optim.prompt_lr = {optim.prompt_lr:g} and optim.gating_lr = "
                f"{optim.gating_lr:g}"
            )
        return loss


def light_trainer(runtime: RuntimeConfig, **kwargs: Any) -> L.Trainer:
    """A Trainer without what one short fit does not need. Make a new one for each fit: a used one does nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return L.Trainer(
            accelerator=runtime.accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **kwargs,
        )


def _require_finite(tensors: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ClientFailure("its trained parameters are not finite")
