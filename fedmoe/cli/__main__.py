"""``python -m fedmoe.cli``, and the script ``fedmoe``."""

import os
from typing import NoReturn

from fedmoe.cli import process


def _main() -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        from fedmoe.cli.completion import complete

        return complete()
    from fedmoe.cli.commands import main

    return main()


def script() -> NoReturn:
    process.run(_main)


if __name__ == "__main__":
    script()
