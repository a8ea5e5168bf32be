"""PromptFL + FT: PromptFL, then each client fine-tunes the global prompt before it is evaluated.

PromptFL is Guo et al., IEEE TMC 2023. Fine-tuning a FedAvg model locally as a baseline of personalization is common;
see Cheng, Chadha, Duchi, "Federated Asymptotics", AISTATS 2023 (there FTFA).
"""

from __future__ import annotations

from fedmoe.errors import UserError
from fedmoe.methods.promptfl import PromptFL


class PromptFLFT(PromptFL):
    """PromptFL whose global prompt each client fits to its own training data before it predicts.

    The rounds are PromptFL's, bit for bit: the cohort trains the global prompt P, the server averages (eq. 6, 7). At
    an evaluation, every client minimizes its own cross-entropy starting from P, with the optimizer of local training
    and batches drawn from a separate seed, and is scored with the result P_i. P_i is neither sent nor kept: the next
    evaluation starts from the global prompt of its time. This costs one local fit of every client per evaluation, which
    counts as evaluation time; ``federation.evaluate_every`` makes evaluations less frequent.

    Args:
        epochs: passes over a client's training data before an evaluation. pFedMoAP's paper, which compares with this
            method, does not give their number; 5 is its number of local epochs.
    """

    label = "PromptFL+FT"

    def __init__(self, epochs: int = 5) -> None:
        if epochs < 1:
            raise UserError(f"method.epochs is {epochs}; valid is an integer of at least 1 (PromptFL has none).")
        self.epochs = self.fine_tune_epochs = epochs
