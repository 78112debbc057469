"""Flags, errors and exit codes of every command: bad input is one line and exit code 2."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from freezejax.errors import UserError
from freezejax.training.interrupts import NonFinite, Stopped

_BAD_INPUT = 2


def define_study_flags(default_config: str) -> None:
    """Defines the flags every study takes: `--config`, `--workdir`, `--tensorboard`."""
    config_flags.DEFINE_config_file("config", default_config, "Config file and scale, FILE.py:SCALE.")
    flags.DEFINE_string("workdir", None, "Folder for everything the study writes; the same folder resumes it.")
    flags.DEFINE_bool("tensorboard", False, "Also write TensorBoard events under WORKDIR/tensorboard.")
    flags.mark_flag_as_required("workdir")


def run(main: Callable[[], None]) -> None:
    """Parses flags, runs `main`, and turns what a user can mend into one line and an exit code.

    Exit codes: 2 for bad input, 1 for a loss that is not finite, 130 and 143 after Ctrl-C and SIGTERM.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: every option is a --flag=value")
            main()
        except UserError as error:
            _fail(str(error), _BAD_INPUT)
        except NonFinite as error:
            _fail(str(error), 1)
        except Stopped as error:
            print(f"{error}; run the same command again to go on from there", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command again to resume from the last checkpoint", 130)

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except (UserError, flags.Error) as error:
        _fail(str(error), _BAD_INPUT)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What ml_collections raises for an unknown key or a value of the wrong type.
        _fail(f"--config: {error.args[0] if error.args else error}", _BAD_INPUT)
    except OSError as error:
        _fail(f"--config: {error}", _BAD_INPUT)


def _fail(message: str, code: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def cache_dir() -> Path:
    """Where prepared text and compiled programs are kept: `$FREEZEJAX_CACHE`, or the user's cache folder.

    >>> cache_dir().is_absolute()
    True
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "freezejax"
    return Path(os.environ.get("FREEZEJAX_CACHE", default)).absolute()


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a resumed or repeated run does not compile again."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
