"""YAML files of settings, whose keys know their lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedmoe.cli.values import Text, closest, sentence, shown
from fedmoe.readers.plain_yaml import PlainLoader


class Key(str):
    """A key of a YAML file, with its line."""

    line: int

    def __new__(cls, text: str, line: int = 0) -> Key:
        key = super().__new__(cls, text)
        key.line = line
        return key


class Loader(PlainLoader):
    """YAML whose keys know their lines; a key given twice is an error. Dates stay text, as in jsonargparse."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in lines:
                    problem = f"{key.value} is given twice, first in line {lines[key.value]}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                lines[key.value] = key.start_mark.line + 1
        mapping = super().construct_mapping(node, deep)
        return {Key(key, lines.get(key, 0)) if isinstance(key, str) else key: mapping[key] for key in mapping}


def load_file(path: Path) -> Mapping[Any, Any]:
    """The settings in a YAML file.

    Raises:
        UserError: the file cannot be read, or holds no mapping.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise sentence(f"{path} does not exist; there is no folder {path.parent}.") from error
        near = closest(path.stem, {file.stem: str(file) for file in sorted(path.parent.iterdir()) if file.is_file()})
        end = f"; did you mean '{near}'?" if near else "; valid is a YAML file."
        raise sentence(f"{path} does not exist", end) from error
    except OSError as error:
        raise sentence(f"{path} cannot be read ({error.strerror}); valid is a YAML file.") from error
    except UnicodeDecodeError as error:
        raise sentence(f"{path} is not text (byte {error.start + 1} is not UTF-8); valid is a YAML file.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise sentence(f"{path}{line} is not valid YAML: {error.problem or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise sentence(f"{path} is not valid YAML: {error}") from error
    if not isinstance(loaded, Mapping):
        holds = "is empty" if loaded is None else f"holds {shown(loaded)}"
        raise sentence(f"{path} {holds}; valid is a YAML mapping of settings, such as 'seed: 0'.")
    return loaded


def loaded(value: Any) -> Any:
    """The mapping, list or null that the text of an option spells; any other value unchanged."""
    if not isinstance(value, Text) or not value.strip():
        return value
    try:
        loaded = yaml.load(value, Loader)
    except (yaml.YAMLError, ValueError):
        return value
    return loaded if loaded is None or isinstance(loaded, Mapping | list) else value
