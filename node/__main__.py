"""`python -m node`, the same as the console command `agora`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from node import cli

    sys.exit(cli.main())


if __name__ == "__main__":
    main()
