"""Stub until the branch is merged."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class _Record(BaseModel):
    def to_json(self) -> dict[str, Any]:
        return self.model_dump()


class ClientScore(_Record):
    round: int
    client: int
    domain: str | None = None
    accuracy: float | None = None
    correct: int
    total: int
    train_examples: int


class Failure(_Record):
    round: int
    client: int
    attempt: int
    reason: str
    traceback: str


class RoundRecord(_Record):
    round: int
    cohort: list[int] = []
    evaluated: bool = False
    accuracy: dict[str, float] | None = None
    accuracy_per_domain: dict[str, float] = {}
    train_loss: float | None = None
    seconds: dict[str, float] = {}
    bytes: dict[str, int] = {}
    clients_seen: int = 0
    prompt_drift: float | None = None
    experts: dict[str, list[int]] = {}
    attention: dict[str, Any] | None = None
    failed: dict[str, str] = {}
    privacy: dict[str, float | None] | None = None
    metrics: dict[str, float] = {}
