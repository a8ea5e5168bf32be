"""``python -m fedmoe.cli``."""

from fedmoe.cli import process


def _main() -> int:
    from fedmoe.cli.commands import main

    return main()


if __name__ == "__main__":
    process.run(_main)
