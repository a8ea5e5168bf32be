"""The frozen CLIP. The only module that imports open_clip.

Shape letters: b images, n texts, d feature width, w token width, R stored vocabulary rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe.config import ClipConfig
from fedmoe.errors import UserError, did_you_mean
from fedmoe.models.model_config import read_model_config
from fedmoe.models.text_tower import TextTower, require_prompts
from fedmoe.models.tokenizer import FILES, ClipTokenizer, FileTokenizer, Tokenizer, pack
from fedmoe.readers.weights import EMBEDDING, WeightsFile, expand_rows, read_weights, require_model_fit

if TYPE_CHECKING:
    from PIL import Image

EMBEDDED = {"fedmoe-tiny": ("glyphs",), "fedmoe-tiny-vit": ("glyphs", "glyphs-long"), "fedmoe-wide": ("glyphs",)}
"""Architectures and tags that lie in fedmoe/assets."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenCLIP(nn.Module):
    """A pre-trained CLIP, always in eval mode and without gradients to its weights.

    Attributes:
        preprocess: PIL image -> [3, H, W], open_clip's own validation transform for these weights.
        logit_scale: CLIP's factor on similarities, exp(logit_scale).
        logit_bias: what SigLIP adds to every logit; None if there is none. It cancels in a softmax over classes.
        feature_dim: d. token_width: w. image_size: side of the input images in pixels.
        text: the text tower's parts. tokenizer: the text tower's.
        name: architecture and weights, for lists.
    """

    model: Any  # open_clip's CLIP or CustomTextCLIP

    def __init__(
        self, model: Any, config: Mapping[str, Any], preprocess: Callable[[Image.Image], Tensor], tokenizer: Tokenizer
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.training = False
        self.preprocess = preprocess
        self._config = dict(config)
        self.tokenizer = tokenizer
        self._known: set[int] | None = None
        self.text = TextTower(getattr(self.model, "text", self.model))
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach().float())
        self.feature_dim = int(config["embed_dim"])
        self.token_width = self.text.token_embedding.embedding_dim
        size = model.visual.image_size
        self.name = "CLIP"
        self.image_size = int(size if isinstance(size, int) else size[0])

    @classmethod
    def load(cls, cfg: ClipConfig) -> FrozenCLIP:
        """Build the architecture and load its weights; if none are named, random ones that are the same each time.

        Raises:
            UserError: unknown architecture or tag, a model configuration from which open_clip builds no model, weights
                that cannot be fetched or read or do not fit, or a text encoder for which prompts cannot be learned.
        """
        if cfg.model_config is None:
            return cls._load(cfg)
        try:
            clip = cls._load(cfg)
            clip._try_out()
        except UserError:
            raise
        except Exception as error:  # open_clip and torch raise many kinds at numbers that make no sense
            raise UserError(
                f"{_name(cfg)} describes no model that can encode an image and a text ({_first(error)}); valid is "
                "open_clip's model-config format."
            ) from error
        return clip

    @classmethod
    def _load(cls, cfg: ClipConfig) -> FrozenCLIP:
        config, overlay = _model_config(cfg)
        require_prompts(config, _name(cfg))
        tokenizer = _tokenizer(cfg, config)
        tag = _tag(cfg)
        path = _weights_path(cfg, tag)
        checkpoint = None if path is None else read_weights(path)
        config["quick_gelu"] = _quick_gelu(cfg, config, tag, checkpoint)
        model = _build(cfg, config)
        known = None
        if checkpoint is not None and path is not None:
            known = _fill(model, checkpoint, path, cfg)
        _to_precision(model, config, _DTYPES[cfg.precision])
        identity = {} if tokenizer.identity is None else {"tokenizer": tokenizer.identity}
        settings = {**config, "precision": cfg.precision, **identity}
        clip = cls(model, settings, _preprocess(cfg, model, tag, overlay), tokenizer)
        clip._known = known
        clip.name = f"{cfg.architecture} {Path(cfg.weights).name if cfg.weights else cfg.pretrained or 'random'}"
        return clip

    def _try_out(self) -> None:
        """Encode any image and any text."""
        from PIL import Image

        size = self.image_size
        self.encode_image(self.preprocess(Image.new("RGB", (size, size))).unsqueeze(0).to(self.text.device))
        tokens = self.tokenize(["a"])
        embedded = self.text.token_embedding(tokens) + self.text.positional_embedding[: tokens.shape[1]]
        self.text.project(self.text.transform(embedded.to(self.text.dtype)))

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Does nothing: CLIP stays in eval mode."""
        return self

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Preprocessed images [b, 3, H, W] -> l2-normalized features [b, d], float32, no gradient."""
        dtype = self.text.dtype
        features = self.model.encode_image(images.to(dtype))
        return F.normalize(features.to(torch.promote_types(dtype, torch.float32)), dim=-1)

    def tokenize(self, texts: list[str]) -> Tensor:
        """open_clip's tokens [n, context_length]; a text that is too long is cut, with EOT as its last token."""
        return self.pack([self.tokenizer.encode(text) for text in texts])

    def pack(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of n texts, each without special tokens, with these and padding: [n, context_length]."""
        return pack(self.tokenizer, texts)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without SOS and EOT."""
        return len(self.tokenizer.encode(text))

    def unknown_tokens(self, ids: Iterable[int] | Tensor) -> set[int]:
        """Those of ``ids`` whose embedding is missing in a compact checkpoint; none for a complete one."""
        given = {int(i) for i in (ids.unique().tolist() if isinstance(ids, Tensor) else ids)}
        return set() if self._known is None else given - self._known

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens, for messages."""
        return self.tokenizer.decode(list(ids))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of architecture, precision and weights."""
        digest = hashlib.blake2b(json.dumps(self._config, sort_keys=True, default=str).encode(), digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
        return digest.hexdigest()


@dataclass(frozen=True)
class _Tag:
    """A pretrained tag: ``file`` for embedded weights, ``cfg`` is open_clip's entry for the others."""

    name: str
    cfg: Mapping[str, Any]
    file: Path | None = None


def _name(cfg: ClipConfig) -> str:
    """The architecture as the user named it."""
    return f"clip.model_config = {cfg.model_config}" if cfg.model_config else f"clip.architecture = {cfg.architecture}"


def _asset(name: str) -> Path:
    return Path(str(files("fedmoe") / "assets" / name))


def _model_config(cfg: ClipConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture in open_clip's model-config format, and a JSON file's settings of preprocessing."""
    import open_clip

    if cfg.model_config is not None:
        key, path = "clip.model_config", Path(cfg.model_config).expanduser()
    elif cfg.architecture in EMBEDDED:
        key, path = "clip.architecture", _asset(f"{cfg.architecture}.json")
    else:
        config = open_clip.get_model_config(cfg.architecture.replace("/", "-")) if ":" not in cfg.architecture else None
        if config is None:
            near = did_you_mean(cfg.architecture, [*open_clip.list_models(), *EMBEDDED])
            raise UserError(
                f"clip.architecture is {cfg.architecture!r}, which open_clip does not know{near or '; valid are '}"
                + ("" if near else "open_clip's names, such as RN50 or ViT-B-16, and fedmoe-tiny or fedmoe-wide.")
            )
        return config, {}
    return read_model_config(key, path)


def _tag(cfg: ClipConfig) -> _Tag | None:
    """The pretrained tag in use; None if a local file replaces it, or the weights are random."""
    if cfg.weights is not None or cfg.pretrained is None:
        return None
    if cfg.architecture in EMBEDDED:
        if cfg.pretrained in EMBEDDED[cfg.architecture]:
            return _Tag(cfg.pretrained, {}, _asset(f"{cfg.architecture}-{cfg.pretrained}.safetensors"))
        tags = list(EMBEDDED[cfg.architecture])
    else:
        import open_clip

        architecture = cfg.architecture.replace("/", "-")
        entry = open_clip.get_pretrained_cfg(architecture, cfg.pretrained)
        if entry:
            return _Tag(cfg.pretrained, entry)
        tags = open_clip.list_pretrained_tags_by_model(architecture)
    listed = ", ".join(tags[:8]) + (", ..." if len(tags) > 8 else "")
    raise UserError(
        f"clip.pretrained is {cfg.pretrained!r}, which {cfg.architecture} does not have; valid are "
        f"{listed + ' and ' if tags else ''}null, or a local file in clip.weights"
        + (did_you_mean(cfg.pretrained, tags) or ".")
    )


def _weights_path(cfg: ClipConfig, tag: _Tag | None) -> Path | None:
    if cfg.weights is not None:
        return Path(cfg.weights).expanduser()
    if tag is None or tag.file is not None:
        return tag.file if tag else None
    from open_clip.pretrained import download_pretrained

    try:
        with _few_words():
            return Path(download_pretrained(dict(tag.cfg)))
    except Exception as error:  # whatever the network, the cache or the hub's client raise
        raise UserError(
            f"The weights clip.pretrained = {tag.name} of {cfg.architecture} could not be fetched ({_first(error)}); "
            "without a network, set clip.weights to a local file of these weights."
        ) from error


class _OneLine(logging.Filter):
    """Lets one line stand for all that a client of the model hub says between its tries."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._said:
            self._said = True
            logging.getLogger(__name__).warning("The model hub does not answer; a few more tries follow.")
        return False


@contextmanager
def _few_words() -> Iterator[None]:
    """One line in place of two for each try of the hub's client; the sentence that ends it all comes after."""
    logger, one_line = logging.getLogger("huggingface_hub.utils._http"), _OneLine()
    logger.addFilter(one_line)
    try:
        yield
    finally:
        logger.removeFilter(one_line)


def _first(error: BaseException) -> str:
    """The first sentence of an error's message, without its full stop."""
    lines = str(error).strip().splitlines() or [""]
    return (lines[0].partition(". ")[0].rstrip(". ") or type(error).__name__)[:200]


def _quick_gelu(cfg: ClipConfig, config: Mapping[str, Any], tag: _Tag | None, checkpoint: WeightsFile | None) -> bool:
    """Which activation the weights were trained with.

    open_clip decides by the architecture's name alone and only warns: RN50 with OpenAI's weights would be wrong.
    """
    if cfg.quick_gelu is not None:
        return cfg.quick_gelu
    custom = cfg.model_config is not None or cfg.architecture in EMBEDDED
    if custom and "quick_gelu" in config:
        return bool(config["quick_gelu"])
    if checkpoint is not None and checkpoint.openai:
        return True
    if custom or checkpoint is None:
        return bool(config.get("quick_gelu", False))
    if tag is not None:
        return bool(tag.cfg.get("quick_gelu", False))
    if config.get("quick_gelu", False):
        return True
    # A local file that does not say: certain only if all published weights of the architecture agree.
    import open_clip

    architecture = cfg.architecture.replace("/", "-")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    found = {bool(open_clip.get_pretrained_cfg(architecture, name).get("quick_gelu", False)) for name in tags}
    if len(found) > 1:
        raise UserError(
            f"The weights file {cfg.weights} does not say which activation {cfg.architecture} was trained with; set "
            "clip.quick_gelu to true (the weights of OpenAI, MetaCLIP and DFN) or false (most of LAION and DataComp)."
        )
    return found == {True}


def _tokenizer(cfg: ClipConfig, config: Mapping[str, Any]) -> Tokenizer:
    """CLIP's own tokenizer, or the one that the architecture names."""
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

    text = config["text_cfg"]
    window, vocabulary = text.get("context_length", 77), text.get("vocab_size", 49408)
    arguments = dict(text.get("tokenizer_kwargs") or {})
    if not text.get("hf_tokenizer_name"):
        if cfg.tokenizer is not None:
            raise UserError(f"clip.tokenizer is {cfg.tokenizer}, but {_name(cfg)} has CLIP's own; valid is null.")
        simple = SimpleTokenizer(context_length=window, **arguments)
        if simple.vocab_size > vocabulary:
            raise UserError(
                f"The text encoder of {_name(cfg)} has a vocabulary of {vocabulary} tokens; valid is at least "
                f"{simple.vocab_size}, as many as the tokenizer has."
            )
        return ClipTokenizer(simple)
    clean, strip = get_clean_fn(arguments.pop("clean", "whitespace")), bool(arguments.pop("strip_sep_token", False))
    if arguments or text.get("tokenizer_mode"):
        odd = ", ".join(arguments) or f"tokenizer_mode = {text['tokenizer_mode']}"
        raise UserError(f"The tokenizer of {_name(cfg)} has {odd}; valid are the options clean and strip_sep_token.")
    return FileTokenizer(_tokenizer_folder(cfg, text["hf_tokenizer_name"]), window, vocabulary, clean, strip)


def _tokenizer_folder(cfg: ClipConfig, repository: str) -> Path:
    """The folder with the tokenizer's files: a local one, or that of the model hub's cache."""
    if cfg.tokenizer is not None:
        return Path(cfg.tokenizer).expanduser()
    local = f"set clip.tokenizer to a folder with its {' and '.join(FILES)}"
    if cfg.model_config is not None:
        raise UserError(
            f"{_name(cfg)} names the tokenizer {repository}, which is not fetched for a local file; {local}."
        )
    from huggingface_hub import hf_hub_download

    try:
        with _few_words():
            return [Path(hf_hub_download(repository, name)).parent for name in FILES][-1]
    except Exception as error:  # whatever the network, the cache or the hub's client raise
        raise UserError(
            f"The tokenizer {repository} of {_name(cfg)} could not be fetched ({_first(error)}); without a network, "
            f"{local}."
        ) from error


def _build(cfg: ClipConfig, config: Mapping[str, Any]) -> nn.Module:
    """The architecture with random weights, always the same ones, from no global generator."""
    from open_clip.model import CLIP, CustomTextCLIP

    arguments = deepcopy(dict(config))
    kind = CustomTextCLIP if arguments.pop("custom_text", False) else CLIP
    if arguments["vision_cfg"].get("timm_model_name"):
        arguments["vision_cfg"]["timm_model_pretrained"] = False
    dtype = _DTYPES[cfg.precision]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return kind(**arguments, cast_dtype=None if dtype == torch.float32 else dtype)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"open_clip cannot build the model of {_name(cfg)}: {_first(error)}.") from error


def _fill(model: nn.Module, checkpoint: WeightsFile, path: Path, cfg: ClipConfig) -> set[int] | None:
    """Load the tensors, each of which must be there and fit; returns the known vocabulary rows of a compact file."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict

    needed = model.state_dict()
    custom = isinstance(model, CustomTextCLIP)
    prefix = "text." if custom else ""
    known = None
    state = dict(checkpoint.tensors)
    if checkpoint.rows is not None:
        key = EMBEDDING if EMBEDDING in state else prefix + EMBEDDING
        if key in state:
            vocabulary = needed[prefix + EMBEDDING].shape[0]
            state[key] = expand_rows(path, state[key], checkpoint.rows, vocabulary)
        known = set(checkpoint.rows.tolist())
    try:
        state = convert_state_dict(model, state)
    except Exception as error:  # open_clip's converters raise many kinds
        raise UserError(f"The weights file {path} does not fit {_name(cfg)}: {_first(error)}.") from error
    if custom and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in needed and state[name].numel() == needed[name].numel():
            state[name] = state[name].reshape(needed[name].shape)
    require_model_fit(state, needed, path, _name(cfg))
    model.load_state_dict(state, strict=False)
    scale = float(state["logit_scale"].float().max().exp())
    if not math.isfinite(scale):
        raise UserError(f"In the weights file {path}, exp(logit_scale) is {scale}; valid is a finite number.")
    bias = float(state["logit_bias"].float().sum()) if "logit_bias" in needed else 0.0
    if not math.isfinite(bias):
        raise UserError(f"In the weights file {path}, logit_bias is {bias}; valid is a finite number.")
    return known


def _to_precision(model: nn.Module, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Weights of the linear maps and convolutions to ``dtype``; norms and embeddings stay float32, as in open_clip."""
    if dtype == torch.float32:
        return
    from open_clip import convert_weights_to_lp
    from open_clip.transformer import LayerNormFp32

    if config["vision_cfg"].get("timm_model_name"):
        model.to(dtype)
        for module in model.modules():
            if isinstance(module, LayerNormFp32):
                module.float()
    else:
        convert_weights_to_lp(model, dtype=dtype)


def _preprocess(
    cfg: ClipConfig, model: Any, tag: _Tag | None, overlay: Mapping[str, Any]
) -> Callable[[Image.Image], Tensor]:
    """open_clip's validation transform for the tag or JSON file; else that on which the architecture's tags agree."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    said = merge_preprocess_dict({}, dict(tag.cfg) if tag else {})
    if cfg.weights is not None and cfg.model_config is None:
        architecture = cfg.architecture.replace("/", "-")
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        entries = [merge_preprocess_dict({}, open_clip.get_pretrained_cfg(architecture, name)) for name in tags]
        if entries and all(entry == entries[0] for entry in entries):
            said = entries[0]
    said = merge_preprocess_dict(said, dict(overlay))
    return image_transform_v2(replace(PreprocessCfg(**said), size=model.visual.image_size), is_train=False)
