"""Tiny tokenizers in the form of Hugging Face's files, of each kind that open_clip's text encoders come with."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["cat", "dog", "digit", "photo", "of", "a", "the", "x", "zero", "one", "two", "three", "four", "five", "six"]
WORDS += ["seven", "eight", "nine"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def write_tokenizer(folder: Path, kind: str) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json; returns the number of each piece.

    siglip: pieces that start words with ▁, </s> behind each text and as padding, nothing in front. siglip2: the same
    without ▁ before the first word, padded with <pad>. clipa: BERT's words between [CLS] and [SEP]. xlm: <s> and </s>
    (number 2) around. mt5: </s> (number 1) behind.
    """
    special = {
        "siglip": ["<pad>", "</s>", "<unk>"],
        "siglip2": ["<pad>", "<eos>", "<bos>", "<unk>"],
        "clipa": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "xlm": ["<s>", "<pad>", "</s>", "<unk>"],
        "mt5": ["<pad>", "</s>", "<unk>"],
    }[kind]
    if kind == "clipa":
        pieces = [*special, *WORDS, ".", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        numbers = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        pieces = list(dict.fromkeys([*special, *(f"▁{word}" for word in WORDS), *WORDS, ".", "▁", *LETTERS]))
        numbers = {piece: i for i, piece in enumerate(pieces)}
        scores = [(piece, 0.0 if piece in special else -1.0 - (len(piece) == 1)) for piece in pieces]
        unknown = numbers["<unk>"]
        tokenizer = Tokenizer(models.Unigram(scores, unknown, byte_fallback=False))
        scheme = "never" if kind == "siglip2" else "always"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    template, pad = {
        "siglip": ("$A </s>", "</s>"),
        "siglip2": ("$A <eos>", "<pad>"),
        "clipa": ("[CLS] $A [SEP]", "[PAD]"),
        "xlm": ("<s> $A </s>", "<pad>"),
        "mt5": ("$A </s>", "<pad>"),
    }[kind]
    tokenizer.add_special_tokens([tokenizers.AddedToken(word, special=True, normalized=False) for word in special])
    around = [(word, numbers[word]) for word in template.split() if word != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}
    if kind == "clipa":
        config["sep_token"] = "[SEP]"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return numbers
