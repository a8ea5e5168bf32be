"""YAML of plain values, from files that are not trusted."""

from __future__ import annotations

from typing import Any

import yaml

_MOST = 100_000  # values in a file, each alias counted as often as what it repeats


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses aliases that expand to too many values, or to themselves.

    Whatever a file holds, loading it returns plain values or raises ``yaml.YAMLError`` or ``ValueError``.
    """

    def get_single_data(self) -> Any:
        try:
            return super().get_single_data()
        except RecursionError:
            raise yaml.YAMLError("its brackets or lists are nested too deeply") from None
        except (AttributeError, IndexError, KeyError) as error:  # PyYAML's own failures, at tags such as !!bool maybe
            raise yaml.YAMLError("a value does not fit its tag") from error

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count(node, {}) > _MOST:
            problem = f"its aliases stand for more than {_MOST:,} values, or for themselves"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node


def _count(node: yaml.Node, counts: dict[int, float]) -> float:
    """Number of values that a node expands to; infinite if it contains itself."""
    if id(node) in counts:
        return counts[id(node)]
    counts[id(node)] = float("inf")  # until it is counted
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    inside = (part for pair in parts for part in pair) if isinstance(node, yaml.MappingNode) else iter(parts)
    counts[id(node)] = 1 + sum(_count(part, counts) for part in inside)
    return counts[id(node)]
