"""``python -m tiledse`` is the command ``tiledse``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
