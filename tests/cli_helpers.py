"""What tests of settings share: the sentence that a mistake ends in, what is read, and the path of a class."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from fedmoe import cli


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def error_of(args, capsys, files=None) -> str:
    """The one line on stderr of a command that fails on the user's input."""
    for name, text in (files or {}).items():
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    code = cli.main(args)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "usage" not in err
    assert "jsonargparse" not in err
    return err.removeprefix("Error: ").rstrip("\n")


def parsed(*args: str, **files: str) -> jsonargparse.Namespace:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    return cli.experiment_parser().parse_args(list(args))
