"""`freezejax COMMAND ...`: every command of the project by its name, `freezejax artifact inspect FILE` among them."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from freezejax.paths import nearest

ELSEWHERE = {"artifact": "freezejax.artifact.__main__"}


def commands() -> dict[str, str]:
    """Name of every command and the module it runs."""
    files = [path for path in Path(__file__).parent.glob("*.py") if path != Path(__file__)]
    names = {path.stem for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    return {name: f"experiments.{name}" for name in sorted(names)} | ELSEWHERE


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `argv[0]` with the other arguments, as `python -m MODULE` does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: freezejax COMMAND --flag=value ...; freezejax COMMAND --help says more")
        print(f"commands: {', '.join(known)}")
        sys.exit(0 if arguments else 2)
    if arguments[0] not in known:
        print(f"error: there is no command {arguments[0]!r}; {nearest(arguments[0], known)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [arguments[0], *arguments[1:]]
    runpy.run_module(known[arguments[0]], run_name="__main__", alter_sys=True)
