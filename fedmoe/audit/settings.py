"""The settings of an audit."""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe.errors import require


@dataclass(frozen=True)
class AuditConfig:
    """How an audit is made: its federations, its targets, its guesses."""

    trials: int = 12
    """Number of federations that are trained, each with coins of its own; all but the one under attack are its
    shadows."""
    audited: int = 8
    """How many of them are attacked in turn, 1 to trials; shadow prompts of PIPRA come from the others."""
    targets: float = 1.0
    """Share of each client's training images, in (0, 1], that are targets: half of them are in its training data."""
    mislabelled: bool = False
    """Whether targets get a wrong class, drawn once: examples that are hard to learn other than by heart, for a bound
    on epsilon."""
    guesses: float = 0.1
    """Share of the coins, in (0, 1], that are guessed for the bound on epsilon: those that the attack is surest of."""
    property_trials: int = 8
    """Number of federations from which class proportions are inferred, on other partitions; 0: they are not."""
    attacks: tuple[str, ...] = ()
    """The attacks on membership that are made, by their names in the table, such as "LiRA online"; empty: all."""

    def __post_init__(self) -> None:
        require(self.trials >= 2, "audit.trials", self.trials, "an integer of at least 2")
        require(1 <= self.audited <= self.trials, "audit.audited", self.audited, f"1 to audit.trials = {self.trials}")
        for name in ("targets", "guesses"):
            require(0 < getattr(self, name) <= 1, f"audit.{name}", getattr(self, name), "a number in (0, 1]")
        few = "0 or an integer of at least 4"
        require(self.property_trials == 0 or self.property_trials >= 4, "audit.property_trials", self.property_trials,
                few)  # fmt: skip
