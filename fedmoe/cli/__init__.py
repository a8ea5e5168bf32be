"""The command line: ``python -m fedmoe.cli fit | evaluate | report | partition | features | data``."""

from fedmoe.cli.commands import build_parser, experiment_parser, main

__all__ = ["build_parser", "experiment_parser", "main"]
