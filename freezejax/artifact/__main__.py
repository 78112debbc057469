"""`python -m freezejax.artifact inspect|verify FILE`: where every byte goes, and whether the file is whole.

Exit codes: 0 for yes, 1 where `--budget` does not fit, 2 for bad input, told in one line.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from freezejax.artifact.inspect import code_size, inspect, verify
from freezejax.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        if arguments.command == "inspect":
            return _inspect(arguments.file, arguments.budget, arguments.code)
        print(verify(arguments.file))
        return 0
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _inspect(file: str, limit: int | None, code: str) -> int:
    lines, left = [inspect(file)], 0
    if limit is not None:
        weight, files = code_size(path for path in code.split(",") if path)
        model = Path(file).stat().st_size
        left = limit - weight - model
        verdict = f"fits, {left:,} left" if left >= 0 else f"{-left:,} too many"
        lines += ["", f"code   {weight:>12,} bytes in {files} files", f"model  {model:>12,} bytes"]
        lines += [f"total  {weight + model:>12,} bytes of {limit:,}: {verdict}"]
    print("\n".join(lines), flush=True)
    return 0 if left >= 0 else 1


def _parser() -> _Parser:
    parser = _Parser(prog="python -m freezejax.artifact", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|verify")
    shown = commands.add_parser("inspect", help="a table of every part of the file, and its bytes")
    shown.add_argument("--budget", type=_bytes, help="bytes that code and model may take together, such as 16000000")
    shown.add_argument("--code", default="", help="files and folders of .py code, comma-separated")
    checked = commands.add_parser("verify", help="digest, header against model, every tensor, one forward pass")
    for command in (shown, checked):
        command.add_argument("file", metavar="FILE", help="an .fjax file")
    return parser


def _bytes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, such as 16000000")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
