"""The command ``tiledse``; ``python -m tiledse`` is the same."""

import sys


def main() -> int:
    """Run the command line as a process: from the first import on, Ctrl-C is one line."""
    # Not at the top: importing this module must not set signal handlers in somebody else's program.
    from .signals import install, quit_at_once

    install(quit_at_once)
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
