"""``python -m fedmoe.cli``."""

import sys

from fedmoe.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
