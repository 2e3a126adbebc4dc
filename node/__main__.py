"""`python -m node`, the same as the console command `agora`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys


def main() -> None:
    """Run the command line and end the process with its code.

    Every verb has closed what it opened when it returns. Taking the interpreter apart afterwards
    costs a node seconds (torch, hundreds of modules) in which it does nothing for anybody and a
    launcher waits, so it is skipped.
    """
    from node import cli

    code = cli.main()
    logging.shutdown()
    with contextlib.suppress(OSError):  # whoever read us has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
