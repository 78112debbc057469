"""The files of a workdir, read in one place: each is as it was written, or one line says what is wrong with it."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.engine import lock
from experiments.engine.variants import Run, Study
from freezejax.atomic import remove_scratch
from freezejax.errors import UserError
from freezejax.training.metrics import Record, read_json_lines, write_atomically

CONFIG, RESULT, METRICS = "config.json", "result.json", "metrics.jsonl"
Result = dict[str, Any]
_WRITTEN_ANEW = ("summary.json", METRICS, "report.html")
_AGAIN = "and the same command makes that run again"
_TEXTS = ("variant", "tokenizer", "params_sha256", "metrics_sha256")
_COUNTS = (
    *("seed", "base_seed", "trainable_params", "frozen_params", "seeded_params"),
    *("stored_bytes_predicted", "steps", "train_tokens"),
)
# What every run leaves; its other figures are those of its study.
_TYPES = {**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_COUNTS, int), "model": dict, "phases": list}


def open_for_writing(workdir: Path, figures: Sequence[str]) -> None:
    """Holds the folder of a study for this command alone, and reads every file of it that later figures come from.

    `figures` are those that every result must have. Refuses a folder where another process writes, or a file is missing
    or damaged.
    """
    lock.acquire(workdir)
    remove_scratch(workdir)
    for name in _WRITTEN_ANEW:
        if (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is a folder, where a file is to be written; move it away")
    finished = sorted(workdir.glob(f"runs/*/seed_*/{RESULT}"))
    if finished and not (workdir / CONFIG).exists():
        raise UserError(
            f"{workdir / CONFIG} is missing, so nobody can tell what the runs of the folder are; put it back, or name "
            "another --workdir"
        )
    for path in finished:
        read_metrics(path.parent, read_result(path.parent, figures))


def read_config(workdir: Path) -> dict[str, Any]:
    """What config.json holds, checked to be what a study writes: `config` and `data_fingerprint`."""
    path, otherwise = workdir / CONFIG, "put it back as it was, or name another --workdir"
    found = _object(path, otherwise)
    if not isinstance(found.get("config"), dict) or not isinstance(found.get("data_fingerprint"), str):
        raise UserError(f"{path} is not the config of a study; {otherwise}")
    if isinstance(of_data := found["config"].get("data"), dict):
        of_data.setdefault("val_path", "")  # folders of before 0.2 have no such field
    return found


def write_result(directory: Path, result: Result) -> None:
    """Writes result.json of a run, with the SHA-256 of its metrics and of all the figures."""
    result = {**result, "metrics_sha256": _sha256((directory / METRICS).read_bytes())}
    text = json.dumps({**result, "digest": _digest(result)}, indent=2, allow_nan=False)
    write_atomically(directory / RESULT, text + "\n")


def read_result(directory: Path, figures: Sequence[str] = ()) -> Result:
    """The figures of a finished run, without their digest; refused where one is changed or missing."""
    path, otherwise = directory / RESULT, f"delete it, {_AGAIN}"
    found = _object(path, otherwise)
    if found.pop("digest", None) != _digest(found):
        raise UserError(f"{path} is not as its run wrote it (its digest differs); {otherwise}")
    numbers = [name for name, value in found.items() if isinstance(value, int | float)]
    for name, kind in {**dict.fromkeys([*numbers, *figures], float), **_TYPES}.items():
        if not _is(kind, found.get(name)):
            raise UserError(f"{path}: {name}={found.get(name)!r} is no figure of a run; {otherwise}")
    return found


def read_metrics(directory: Path, result: Result) -> list[Record]:
    """The records of the finished run that `result` is of; refused where they were changed after the run."""
    path, otherwise = directory / METRICS, f"delete {directory / RESULT}, and the file if it is there, {_AGAIN}"
    if _sha256(_bytes(path, otherwise)) != result["metrics_sha256"]:
        raise UserError(f"{path} is not as its run left it (its SHA-256 differs); {otherwise}")
    return list(read_json_lines(path))


class Finished:
    """Results of the finished runs of a study's folder, each read once."""

    def __init__(self, workdir: Path) -> None:
        """Reads nothing yet."""
        self.workdir = workdir
        self._results: dict[str, dict[tuple[int, int], Result]] = {}

    def read_all(self, study: Study) -> None:
        """Reads what earlier commands left in the folder."""
        for variant in study.variants:
            for path in (self.workdir / "runs" / variant.name).glob(f"seed_*/{RESULT}"):
                self.add(path.parent)

    def add(self, directory: Path) -> None:
        """Reads the result of a run that has ended."""
        result = read_result(directory)
        self._results.setdefault(directory.parent.name, {})[result["seed"], result["base_seed"]] = result

    def of(self, variant: str) -> list[Result]:
        """Results of a variant's runs, by training seed, then base seed."""
        return [result for _, result in sorted(self._results.get(variant, {}).items())]

    def records(self, study: Study) -> Iterator[Record]:
        """The metrics of every finished run, each record with the variant and the seeds that it is of."""
        for variant in study.variants:
            for result in self.of(variant.name):
                run = Run(variant.name, result["seed"], result["base_seed"])
                for record in read_metrics(run.directory(self.workdir), result):
                    yield {**run._asdict(), **record}


def _object(path: Path, otherwise: str) -> dict[str, Any]:
    content = _bytes(path, otherwise)
    try:
        # NaN and Infinity, which are not JSON either, are no numbers that `int` knows.
        found = json.loads(content.decode("utf-8"), parse_constant=int)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON; {otherwise}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not an object; {otherwise}")
    return found


def _bytes(path: Path, otherwise: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {otherwise}") from None


def _is(kind: type, value: Any) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    number = isinstance(value, kind | int) and not isinstance(value, bool)  # 2.0 may be written as 2
    return number and math.isfinite(value) and value >= 0


def _digest(result: Result) -> str:
    return _sha256(json.dumps(result, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
