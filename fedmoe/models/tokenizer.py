"""From texts to token ids, for text encoders with CLIP's tokenizer and for those that bring their own.

Shape letters: n texts, L positions of the text window.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.io import read_regular

FILES = ("tokenizer.json", "tokenizer_config.json")  # as Hugging Face's libraries write them


class Tokenizer(Protocol):
    """What a text encoder's tokenizer does.

    Attributes:
        front, behind: ids of the special tokens around each text, such as SOS and EOT.
        pad: id of what fills the window behind them.
        window: L.
        identity: tells tokenizers apart where the architecture does not; None: the architecture does.
    """

    front: list[int]
    behind: list[int]
    pad: int
    window: int
    identity: str | None

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, for messages."""


def pack(tokenizer: Tokenizer, texts: Sequence[Sequence[int]]) -> Tensor:
    """Ids of n texts with special tokens and padding [n, L]; of a text that is too long, the end is cut."""
    front, behind = list(tokenizer.front), list(tokenizer.behind)
    rows = torch.full((len(texts), tokenizer.window), tokenizer.pad, dtype=torch.long)
    for row, ids in zip(rows, texts, strict=True):
        whole = [*front, *ids[: tokenizer.window - len(front) - len(behind)], *behind]
        row[: len(whole)] = torch.tensor(whole, dtype=torch.long)
    return rows


class ClipTokenizer:
    """CLIP's own byte pairs.

    Args:
        simple: open_clip's SimpleTokenizer.
    """

    identity: str | None = None

    def __init__(self, simple: Any) -> None:
        self._simple = simple
        self.front, self.behind, self.pad = [simple.sot_token_id], [simple.eot_token_id], 0
        self.window = int(simple.context_length)

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._simple.encode(text)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._simple.decode(list(ids))).strip()


class FileTokenizer:
    """A tokenizer from a tokenizer.json, such as SigLIP's sentence pieces.

    Args:
        folder: with tokenizer.json and tokenizer_config.json, which names the padding.
        window: L.
        vocabulary: number of tokens that the text encoder knows.
        clean: open_clip's cleaning of texts for this encoder.
        strip_separator: whether the separator behind each text becomes a 0.

    Raises:
        UserError: the extra fedmoe[tokenizers] is not installed, or a file is missing, damaged or names no padding.
    """

    def __init__(
        self, folder: Path, window: int, vocabulary: int, clean: Callable[[str], str], strip_separator: bool = False
    ) -> None:
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError as error:
            raise UserError(
                "The text encoder's tokenizer needs a package that is not installed; valid is "
                "pip install 'fedmoe[tokenizers]'."
            ) from error
        rules, settings = (_read(folder / name) for name in FILES)
        try:
            self._reader = Reader.from_str(rules)
            told = json.loads(settings)
        except Exception as error:  # the package raises Exception itself
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"The tokenizer in {folder} cannot be read ({why}).") from error
        self._reader.no_padding()
        self._reader.no_truncation()
        pad = self._id(told, "pad_token")
        if pad is None:
            raise UserError(
                f"{folder / FILES[1]} names no 'pad_token' of {FILES[0]}; valid is the folder as published."
            )
        self.pad, self.window, self._clean, self._vocabulary = pad, window, clean, vocabulary
        around = self._reader.encode("a")
        inside = [i for i, special in enumerate(around.special_tokens_mask) if not special]
        first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
        separator = self._id(told, "sep_token") if strip_separator else None
        self.front, self.behind = (
            [0 if i == separator else i for i in part] for part in (around.ids[:first], around.ids[last:])
        )
        if max(pad, *self.front, *self.behind) >= vocabulary:
            raise UserError(f"The tokenizer in {folder} is not that of a text encoder with {vocabulary} tokens.")
        known = f"{self.front} {self.behind} {self.pad} {rules}"
        self.identity: str | None = hashlib.blake2b(known.encode(), digest_size=16).hexdigest()

    def _id(self, settings: Any, name: str) -> int | None:
        told = settings.get(name) if isinstance(settings, Mapping) else None
        told = told.get("content") if isinstance(told, Mapping) else told
        found: int | None = self._reader.token_to_id(told) if isinstance(told, str) else None
        return found

    def encode(self, text: str) -> list[int]:
        """Raises ``UserError`` at a token that the text encoder does not know."""
        ids: list[int] = self._reader.encode(self._clean(text), add_special_tokens=False).ids
        odd = [i for i in ids if i >= self._vocabulary]
        if odd:
            raise UserError(
                f"The text {text!r} has the token {self._reader.id_to_token(odd[0])!r}, number {odd[0]}; valid are the "
                f"{self._vocabulary} that the text encoder has."
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._reader.decode(list(ids), skip_special_tokens=False)).strip()


def _read(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"clip.tokenizer: the file {path} cannot be read: {why}; valid is a folder with {' and '.join(FILES)}."
        ) from error
