"""HTML elements as text.

Escaping is the rule: a child or attribute that is plain ``str`` is always escaped; only ``Html``, which nothing but
this module makes, is taken as it is.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")  # HTML has no such characters


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: str) -> Html:
    """``value`` escaped; what HTML cannot hold, lone surrogates and control characters, is a replacement character."""
    if isinstance(value, Html):
        return value
    clean = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    return Html(html.escape(_FORBIDDEN.sub("\ufffd", clean), quote=True))


def join(parts: Iterable[str]) -> Html:
    return Html("".join(text(part) for part in parts))


def el(name: str, *children: str, **attributes: str) -> Html:
    """The element ``name``. Attributes: ``class_`` is class, ``aria_label`` is aria-label."""
    pairs = [f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items()]
    return Html(f"<{name}{''.join(pairs)}>{join(children)}</{name}>")
