"""``python -m fedmoe.cli``, and the script ``fedmoe``."""

from typing import NoReturn

from fedmoe.cli import process


def _main() -> int:
    from fedmoe.cli.commands import main

    return main()


def script() -> NoReturn:
    process.run(_main)


if __name__ == "__main__":
    script()
