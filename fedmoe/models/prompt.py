"""The learnable prompt P: context vectors around each class name (section 3.1).

Shape letters: M prompts at once, C classes, L positions, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe.config import PromptConfig
from fedmoe.errors import UserError
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.packed import worthwhile
from fedmoe.models.sentence_pass import SentencePass
from fedmoe.models.text_pass import PromptLayout, SharedPass, TextPass, text_pass


class Meeting(Protocol):
    """Where clients that train together wait for each other."""

    def forward(self, run: TextPass, contexts: Tensor) -> Tensor:
        """What ``run`` makes of contexts [M, l, w]; the gradient ends there, and is continued elsewhere."""


class PromptLearner(nn.Module):
    """The learned tensors that make up a client's prompts, and their encoding by the frozen text encoder.

    Initially there is one prompt named ``prompt``, [l, w] ([C, l, w] if class-specific); ``hold`` replaces it. CLIP is
    not registered: it neither moves with this module nor appears in its state dict. Features are computed on CLIP's
    device and returned on the prompt's.

    Attributes:
        start: the common initial value of a prompt.
        learned: the learned tensors by name.
        meeting: runs passes with gradient together with those of other clients; None: alone.

    Args:
        clip: the frozen CLIP.
        class_names: C names; an underscore is read as a space.
        cfg: length, initial value and position of the context, and the text pass.
        generator: for the random initial value, on the CPU; None: torch's global one.

    Raises:
        UserError: a class name that is empty, too long for the context window or unknown to the embedded CLIP.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        cfg: PromptConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.class_names = tuple(readable(name) for name in class_names)
        if not self.class_names:
            raise UserError("There are no class names; a prompt needs at least one class.")
        words = None if cfg.init is None else word_embeddings(clip, cfg.init, "prompt.init")  # [l, w]
        length = cfg.length if words is None else len(words)
        self._clip = (clip,)  # a tuple hides it from nn.Module
        self.meeting: Meeting | None = None
        self._config, self._passes = cfg, dict[tuple[int, int], TextPass]()
        self._sentences = dict[tuple[str, int, int], SentencePass]()
        layout = self._layout(length)
        self.token_ids = layout.ids  # [C, L]
        self._passes[length, 0] = text_pass(cfg.text_pass, clip.text, layout)
        shape = (len(self.class_names), length, clip.token_width) if cfg.class_specific else (length, clip.token_width)
        if words is None:
            start = torch.empty(shape).normal_(std=cfg.std, generator=generator)
        else:
            start = words.expand(shape).clone()
        self.start: Tensor
        self.register_buffer("start", start, persistent=False)
        self.learned = nn.ParameterDict()
        self.hold({"prompt": start})

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Learn these tensors, by name, instead of the current ones."""
        self.learned = nn.ParameterDict()
        for name, tensor in tensors.items():  # one by one: given a dict, torch sorts it
            self.learned[name] = nn.Parameter(tensor.clone())

    def __getitem__(self, name: str) -> Tensor:
        return self.learned[name]

    @property
    def clip(self) -> FrozenCLIP:
        return self._clip[0]

    def forward(self, prompt: Tensor | None = None) -> Tensor:
        """L2-normalized text features, float32.

        Args:
            prompt: a prompt with the shape of ``start``, or a batch of M of them; None: the learned one.

        Returns:
            [C, d], or [M, C, d] for a batch.
        """
        prompt = self["prompt"] if prompt is None else prompt
        shape = self.start.shape
        if prompt.shape[-len(shape) :] != shape or prompt.ndim > len(shape) + 1:
            raise ValueError(f"a prompt has shape {tuple(shape)}, or a batch of such; got {tuple(prompt.shape)}")
        return self.encode(prompt)

    def encode(self, prompt: Tensor, behind: int = 0) -> Tensor:
        """As ``forward``, of prompts of any length, which may differ from that of ``start``.

        Args:
            prompt: [l, w], or a batch [M, l, w] ([C, l, w] and [M, C, l, w] if class-specific), l at least 1.
            behind: reads the features that many tokens behind the EOT, where CLIP has padding.

        Raises:
            UserError: a class name is too long for the context window behind a prompt of this length.
        """
        key = (prompt.shape[-2], behind)
        if key not in self._passes:
            layout = self._layout(key[0])
            window = self.clip.text.context_length
            if int(layout.eot.max()) + behind >= window:
                raise UserError(f"A class name ends at token {int(layout.eot.max()) + 1} of {window}, too far back.")
            layout = replace(layout, eot=layout.eot + behind)
            self._passes[key] = text_pass(self._config.text_pass, self.clip.text, layout)
        batch = prompt if prompt.ndim > self.start.ndim else prompt.unsqueeze(0)
        contexts, run = batch.to(self.clip.text.device), self._passes[key]
        if self.meeting is not None and torch.is_grad_enabled() and contexts.requires_grad:
            run = partial(self.meeting.forward, run)
        features = run(contexts)  # [M, C, d]
        features = _normalize(features).to(prompt.device)
        return features if prompt.ndim > self.start.ndim else features.squeeze(0)

    @property
    def shared(self) -> tuple[object, ...]:
        """What another learner of the same classes can share with this one: what is fixed, or only made once."""
        return (self.clip, self.clip.text, self._passes, self._sentences)

    def settle_packing(self, wanted: str) -> bool:
        """Switch packed weights on or off (``runtime.packed_weights``): ``on``, ``off``, or ``auto``, which measures
        with as many tokens as a prompt of ``start``'s length has. Returns what was chosen."""
        usual = self._passes[self.start.shape[-2], 0]
        on = wanted == "on"
        if wanted == "auto" and isinstance(usual, SharedPass):
            on = worthwhile(self.clip.text.blocks[-1].mlp.c_fc.weight, usual.rows)
        self.clip.text.packed = on
        return on

    def sentences(self, template: str, learned: int = 0, first: int = 0) -> SentencePass:
        """The pass of a sentence about each class, whose first words may be learned; made once.

        Args:
            template: the sentence, with ``{class}`` in the name's place.
            learned: number of tokens after SOS that are learned.
            first: the first block that is ever edited.

        Raises:
            UserError: as ``sentence_layout``.
        """
        key = (template, learned, first)
        if key not in self._sentences:
            layout = sentence_layout(self.clip, self.class_names, template, learned)
            self._sentences[key] = SentencePass(self.clip.text, layout, first)
        return self._sentences[key]

    def _layout(self, length: int) -> PromptLayout:
        """Where a prompt of this length and the class names go."""
        cfg = self._config
        return prompt_layout(self.clip, self.class_names, length, cfg.position, cfg.class_specific)


@torch.no_grad()
def template_features(clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Tensor:
    """Text features of a sentence about each class, for zero-shot prediction: [C, d], l2-normalized float32.

    Args:
        clip: the frozen CLIP.
        class_names: C names; an underscore is read as a space.
        template: with ``{class}`` (or ``{}``) in the name's place, as in "a photo of a {class}.".

    Raises:
        UserError: the template has no place for the name, or a sentence is too long or unknown to the embedded CLIP.
    """
    layout = sentence_layout(clip, [readable(name) for name in class_names], template)
    nothing = torch.zeros(1, 1, clip.token_width, device=clip.text.device)
    return _normalize(text_pass("cut", clip.text, layout)(nothing)).squeeze(0)


def sentence_layout(clip: FrozenCLIP, names: Sequence[str], template: str, learned: int = 0) -> PromptLayout:
    """Tokens of a sentence about each name, with context vectors in place of the first ``learned`` tokens after SOS.

    Raises:
        UserError: as ``template_features``; or fewer tokens than ``learned`` come before the name.
    """
    place = next((place for place in ("{class}", "{}") if place in template), None)
    if place is None:
        raise UserError(f"The template is {template!r}; it must contain {{class}}, as in 'a photo of a {{class}}.'.")
    ahead = clip.count_tokens(template.partition(place)[0])
    if ahead < learned:
        raise UserError(f"The template {template!r} has {ahead} tokens before the name; valid are at least {learned}.")
    texts = [template.replace(place, name) for name in names]
    front = len(clip.tokenizer.front)
    limit = clip.text.context_length - front - len(clip.tokenizer.behind)
    for text in texts:
        if clip.count_tokens(text) > limit:
            raise UserError(f"The sentence {text!r} has {clip.count_tokens(text)} tokens; valid is at most {limit}.")
    ids = clip.tokenize(texts)
    slots = torch.arange(ids.shape[1]).expand_as(ids) - front  # of the positions after SOS
    slots = torch.where((slots >= 0) & (slots < learned), slots, -1)
    layout = PromptLayout(ids, slots, clip.text.ends(ids), class_specific=False, front=front)
    _require_known(clip, _written(clip, layout))
    return layout


def prompt_layout(
    clip: FrozenCLIP, names: Sequence[str], length: int, position: str, class_specific: bool
) -> PromptLayout:
    """Tokens of "X X ... X name." for each name, with context vectors in place of the Xs.

    With position "middle", the name comes after the first l // 2 vectors, with "front" before all of them; what follows
    the name (the full stop and EOT) stays last, as in CoOp's released code.

    Raises:
        UserError: a name that is empty, too long for the context window, or unknown to the embedded CLIP.
    """
    front, window = len(clip.tokenizer.front), clip.text.context_length
    placeholder, sentences, sizes = clip.tokenizer.encode("X"), list[list[int]](), list[int]()
    for name in names:
        if not name:
            raise UserError("A class name is empty; valid are names with at least one character.")
        # Encoded behind another word: sentence pieces of a text's first word may differ.
        whole, own = (clip.tokenizer.encode(f"X {text}")[len(placeholder) :] for text in (f"{name}.", name))
        if not own:
            raise UserError(f"The class name {name!r} has no tokens; valid are names with at least one letter.")
        used = front + length + len(whole) + len(clip.tokenizer.behind)
        if used > window:
            raise UserError(
                f"The class name {name!r} with prompt.length = {length} takes {used} tokens; valid are at most "
                f"{window}, the length of CLIP's text window."
            )
        sentences.append(placeholder[:1] * length + whole)
        sizes.append(len(own) if whole[: len(own)] == own else len(whole))  # a piece may hold the full stop as well
    ids = clip.pack(sentences)  # [C, L]
    eot = clip.text.ends(ids)
    ahead = {"end": length, "middle": length // 2, "front": 0}[position]
    order, slots = [], []
    for size in sizes:
        # Positions of "SOS X..X name . EOT" in their new order, with the name after the first vectors.
        first_name, behind = front + length, front + length + size
        places = torch.arange(window)
        learned = places[front:first_name]
        order.append(
            torch.cat([places[:front], learned[:ahead], places[first_name:behind], learned[ahead:], places[behind:]])
        )
        slots.append(torch.where((order[-1] >= front) & (order[-1] < first_name), order[-1] - front, -1))
    layout = PromptLayout(ids.gather(1, torch.stack(order)), torch.stack(slots), eot, class_specific, front)
    _require_known(clip, _written(clip, layout))
    return layout


def _written(clip: FrozenCLIP, layout: PromptLayout) -> Tensor:
    """The ids of the tokens that are not learned and change a feature."""
    seen = torch.arange(layout.ids.shape[1]) <= layout.eot.unsqueeze(1)
    return layout.ids[(layout.slots < 0) & (seen | (not clip.text.causal))]


def readable(name: str) -> str:
    """A class name as used in a sentence: underscores become spaces."""
    return " ".join(name.replace("_", " ").split())


def word_embeddings(clip: FrozenCLIP, text: str, key: str) -> Tensor:
    """The embeddings [l, w] of the tokens of some words, which the setting ``key`` names.

    Raises:
        UserError: there are no words or too many, or some that are unknown to the embedded CLIP.
    """
    text = readable(text)
    length = clip.count_tokens(text)
    special = len(clip.tokenizer.front) + len(clip.tokenizer.behind)
    limit = clip.text.context_length - special - 1  # with one token for the class name
    if not 1 <= length <= limit:
        raise UserError(f"{key} is {text!r}, which has {length} tokens; valid are 1 to {limit}.")
    ids = torch.tensor(clip.tokenizer.encode(text))
    _require_known(clip, ids)
    with torch.no_grad():
        return clip.text.token_embedding(ids.to(clip.text.device)).float().cpu()


def _require_known(clip: FrozenCLIP, ids: Tensor) -> None:
    unknown = sorted(clip.unknown_tokens(ids))
    if unknown:
        words = ", ".join(repr(clip.decode([i])) for i in unknown[:5])
        raise UserError(
            f"The weights of CLIP store no embedding for {words}{' and more' if len(unknown) > 5 else ''}; valid are "
            "class names and templates of the words it was trained on, or complete weights."
        )


def _normalize(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
