"""Flags, errors and exit codes of every command: bad input is one line and exit code 2."""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.engine import accelerators, distributed, dry_run, lock
from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import NonFinite, Stopped

_ROOT = Path(__file__).parents[2]  # of the checkout, or of the packages where this one is installed
_default_config = ""  # where the command line names none
flags.disclaim_key_flags()  # they are those of the command that asks for them, and its --help lists them


def define_config_flag(default_config: str) -> None:
    """Defines `--config`, which any field of the config may follow."""
    # No default here: absl would load the file, and fail on it, before any error can be told well.
    config_flags.DEFINE_config_file("config", None, f"Config and scale, FILE.py:SCALE; else {default_config}.")
    if not any(re.match(r"--?config(=|$)", argument) for argument in sys.argv[1:]):
        global _default_config
        _default_config = default_config
        sys.argv.insert(1, f"--config={default_config}")
    sys.argv[1:] = map(_as_installed, sys.argv[1:])


def _as_installed(argument: str) -> str:
    """A config file named as in a checkout; where there is none, that of the installed package."""
    found = re.fullmatch(r"((?:--?config=)?)(experiments/configs/\w+\.py)((?::.*)?)", argument)
    if found is None or Path(found[2]).exists() or not (installed := _ROOT / found[2]).exists():
        return argument
    return f"{found[1]}{installed}{found[3]}"


def define_study_flags(default_config: str) -> None:
    """Defines the flags every study takes, those of runs of several processes among them."""
    define_config_flag(default_config)
    flags.DEFINE_string("workdir", None, "Folder for everything the study writes; the same folder resumes it.")
    flags.DEFINE_bool("check", False, "Read flags and config, say whether they can be, and exit; reads no data.")
    dry_run.define_flags()
    distributed.define_flags()
    accelerators.define_flags()
    flags.DEFINE_bool("tensorboard", False, "Also write TensorBoard events under WORKDIR/tensorboard.")


def run(main: Callable[[], object]) -> None:
    """Parses flags, runs `main`, and turns what a user can mend into one line and an exit code.

    Exit codes: 2 for bad input, 1 for a loss that is not finite, 75 where the other processes of the run were not
    reached (the same command may do better), 130 and 143 after Ctrl-C and SIGTERM.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # experiments/__init__ has listened until here
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: every option is a --flag=value")
            with lock.held:
                _start(main)
        except UserError as error:
            _fail(str(error) + _given_as(str(error)))
        except distributed.NotJoined as error:
            _fail(str(error), os.EX_TEMPFAIL)
        except NonFinite as error:
            _fail(f"{error}, in another --workdir", 1)
        except Stopped as error:
            print(f"{error}; run the same command again to go on from there", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            # At once: the end of the interpreter would wait for what compiles, and XLA's threads do not survive it.
            sys.stdout.flush()
            message = "interrupted; run the same command again to resume from the last checkpoint"
            print(f"error: {message}", file=sys.stderr, flush=True)
            os._exit(130)
        except Exception as error:
            if (line := no_space_left(error) or _unreadable(error)) is None:
                raise
            _fail(line)

    logging.set_verbosity(logging.FATAL)  # libraries log an error, and then raise it: that is told once, above
    accelerators.choose_platform()
    app.run(guarded, flags_parser=_parse_flags)


def _start(main: Callable[[], object]) -> None:
    values = flags.FLAGS
    accelerators.keep_freed_memory(_has_large_steps(values.config) if "config" in values else True)
    if "check" in values and values.check:
        TrainConfig.from_mapping(values.config.train)
        print("The flags and the config can be read.")
        return
    if "distributed" in values and not values.dry_run:  # a study; other commands say it themselves, or use no device
        distributed.start()
        accelerators.announce()
    if _default_config:
        print(f"No --config is given; this is {_default_config}", flush=True)
    main()


def _has_large_steps(config: ConfigDict) -> bool:
    """Whether a step's temporaries may take 64 MiB: about 110 bytes per token, layer and width (`benchmarks.step`)."""
    widths = [size.num_layers * size.model_dim for size in config.get("sizes", {}).values()]
    return not widths or 110 * config.train.batch_size * config.train.seq_len * max(widths) >= 2**26


@contextlib.contextmanager
def writing(given: str) -> Iterator[None]:
    """The block writes the file that a flag names, `given` as --flag=path; one line where it cannot."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{given}: cannot be written: {error.strerror}") from None


def no_space_left(error: BaseException) -> str | None:
    """One line for an error behind which a full disk or a used-up quota stands, whoever raised it; else None.

    >>> no_space_left(OSError(28, "No space left on device", "runs/x"))
    'runs/x: No space left on device; free some, and run the same command again'
    """
    for cause in _causes(error):
        # Libraries in C++ keep the words alone, of what was an OSError with a number and a file.
        if words := re.search(r"No space left on device|Disk quota exceeded", str(cause)):
            told = re.search(r"/[^\s'\";:,\[\]]+", str(cause))
            place = getattr(cause, "filename", None) or (told[0] if told else "the disk of the workdir or the cache")
            return f"{place}: {words[0]}; free some, and run the same command again"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it holds and what led to it."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        if (now := waiting.pop()) is not None and id(now) not in seen:
            seen.add(id(now))
            yield now
            inside = now.exceptions if isinstance(now, BaseExceptionGroup) else ()
            waiting += [*inside, now.__context__, now.__cause__]


def _unreadable(error: Exception) -> str | None:
    """One line where a path under the workdir or the cache cannot be used, or one of any place is no path at all."""
    name = getattr(error, "filename", None)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        flag = next((text.partition("=")[0] + "=" for text in sys.argv[1:] if str(name) in text), "")
        return f"{flag}{str(name)[:60]}...: {error.strerror}"
    workdir = flags.FLAGS.workdir if "workdir" in flags.FLAGS else None
    places = (str(cache_dir()), *([os.path.abspath(workdir)] if workdir else []))
    return f"{name}: {error.strerror}" if isinstance(error, OSError) and str(name).startswith(places) else None


def _given_as(message: str) -> str:
    """Names the `--config` fields of the command line that a message speaks of without their names."""
    meant = []
    for argument in sys.argv[1:]:
        found = re.fullmatch(r"--?config\.([\w.]*?(\w+))=(.*)", argument, re.DOTALL)
        if found and f"config.{found[1]}" not in message:
            _, name, value = found.groups()
            forms = [repr(value), f"{name}={value}", f"{name}={value!r}"]
            if len(value) > 3 and not re.fullmatch(r"[\d.e+-]+", value):
                forms.append(value)
            meant += [argument] * any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", message) for form in forms)
    return f"; given as {', '.join(meant)}" if meant else ""


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        for name in ("scale", "experiment"):
            if given := [text for text in argv if re.match(rf"--?config\.{name}(=|$)", text)]:
                raise UserError(f"{given[0]}: the config file says it; give its scale as --config=FILE.py:SCALE")
        rest = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS:
            if "workdir" in flags.FLAGS and not (flags.FLAGS.workdir or flags.FLAGS.dry_run):
                raise UserError("--workdir=FOLDER is missing: it gets everything the run writes")
            _ = flags.FLAGS.config.scale  # a config file that failed to load fails when it is used
        return rest
    except SystemExit:  # absl's --help, which ends with 1
        sys.exit(0)
    except Exception as error:  # absl and ml_collections raise all kinds, and so does what stands in a config file
        _fail(_plain(error))


def _plain(error: Exception) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        return _no_such_flag(error.flagname)
    lines = [line.strip() for line in str(error).replace("\\'", "'").replace("\\n", "\n").splitlines() if line.strip()]
    text = re.sub(r"invalid literal for int\(\) with base 10: .*", "expected an integer", " ".join(lines))
    text = re.sub(r"could not convert string to float: .*", "expected a number", text)
    # ml_collections says no more than the name, or the name and another one
    if isinstance(error, AttributeError) and (name := re.fullmatch(r'\W*(\w+)\W*(Did you mean "(\w+)".*)?', text)):
        return _no_such_field(name[1]) + (f"; nearest: {name[3]}" if name[3] else "")
    if "Failed loading config file" in str(error):
        return f"--config: {lines[-1].partition('] ')[2] or lines[-1]}"
    # of a traceback that ml_collections put in the message
    if told := [found[1] for line in lines if (found := re.match(r"[\w.]*(?:Error|Exception): (.*)", line))]:
        return told[-1]
    return re.sub(r"^'([^']*)'$", r"\1", text) or type(error).__name__  # a KeyError has quotes


def _no_such_flag(name: str) -> str:
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    known = jax.tree_util.tree_leaves_with_path(config.to_dict()) if isinstance(config, ConfigDict) else []
    fields = [".".join(["config", *(str(key.key) for key in path)]) for path, _ in known]
    if meant := [f"--{field}=VALUE" for field in fields if field.endswith(f".{name}")]:
        return f"there is no flag --{name}; a field of the config is {' or '.join(meant)}"
    own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    return f"there is no flag --{name}; {nearest(name, own, 1)}"


def _no_such_field(name: str) -> str:
    given = [argument for argument in sys.argv if re.match(rf"--?config\.([\w.]+\.)?{name}(\W|$)", argument)]
    return f"{' '.join(given[:1]) or '--config'}: the config has no field {name!r}"


def _fail(message: str, code: int = 2) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def cache_dir() -> Path:
    """Where prepared text and compiled programs are kept: `$FREEZEJAX_CACHE`, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "freezejax"
    return Path(os.environ.get("FREEZEJAX_CACHE", default)).absolute()


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a resumed or repeated run does not compile again."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
