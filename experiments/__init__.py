"""Runnable studies: `python -m experiments.NAME --config=... --workdir=DIR`."""

import os
import signal
import sys


def _interrupted(*_: object) -> None:
    os.write(2, b"error: interrupted before the start; nothing was written\n")
    os._exit(130)


# A command, whose imports take seconds; `engine.cli.run` listens after them. A shell may want Ctrl-C to be ignored.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
