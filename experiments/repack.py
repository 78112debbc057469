"""What a codec of adapters costs: finished runs of a study packed again with others, and scored.

    python -m experiments.repack --workdir=RUN --variants=lora_r16,pr_2058 [--adapter_codecs=int4,int6,int8,float16]

Nothing is trained, and nothing in the folder changes. All that is no adapter is packed as the study has it, so the
lines of a variant differ by their adapters alone; the loss is against the weights as trained. In the challenge int6
adapters lost 0.024 bits per byte, int8 ones 0.003.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments.engine import cli, study
from experiments.engine.results import packing
from experiments.engine.variants import Evaluators
from experiments.engine.workdir import CONFIG, RESULT, Result, read_config, read_result
from experiments.report.statistics import Interval, interval
from experiments.report.table import Column, terminal, with_ci
from freezejax import artifact, models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import check_known
from freezejax.training.checkpoints import load_params


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("workdir", None, "Folder of a study.")
    flags.DEFINE_list("variants", None, "Variants whose finished runs are packed again.")
    flags.DEFINE_list("adapter_codecs", ["int4", "int6", "int8", "float16"], "Codecs of the adapters to try.")
    flags.DEFINE_string("out", None, "Also write the table as JSON to this file.")


class _Line(NamedTuple):
    """A variant with its adapters in one codec."""

    variant: str
    codec: str
    bytes: int  # of the file, mean over runs
    loss: Interval  # bits per byte above those of the weights as trained

    def plain(self) -> dict[str, Any]:
        """What --out holds of it."""
        found = {"bytes": self.bytes, "loss_bpb_mean": self.loss.mean, "loss_bpb_ci95": self.loss.ci95}
        return {"variant": self.variant, "adapter_codec": self.codec, **found}


_COLUMNS = [
    Column("variant", lambda line: line.variant, kind="name"),
    Column("adapters", lambda line: line.codec, kind="words"),
    Column("file kB", lambda line: line.bytes / 1e3, "{:,.1f}".format),
    Column("loss, bits/byte", lambda line: with_ci(line.loss.mean, line.loss.ci95, 4)),
]


def main() -> None:
    """Prints one line per variant and codec; with --out also writes them."""
    given = flags.FLAGS
    if not given.workdir or not (Path(given.workdir) / CONFIG).exists():
        raise UserError(f"--workdir={given.workdir}: name the folder of a study")
    if not given.variants:
        raise UserError("--variants=NAME,NAME is missing: whose runs to pack again")
    for codec in given.adapter_codecs or ():
        check_known(codec, artifact.CODECS, f"--adapter_codecs: there is no codec {codec!r}", count=3)
    lines = list(repacked(Path(given.workdir).absolute(), given.variants, given.adapter_codecs or ()))
    if given.out:
        with cli.writing(f"--out={given.out}"):
            write_atomically(Path(given.out), json.dumps([line.plain() for line in lines], indent=2) + "\n")
    terminal("What the codec of the adapters costs, against the weights as trained", _COLUMNS, lines)


def repacked(workdir: Path, variants: Sequence[str], codecs: Sequence[str]) -> Iterator[_Line]:
    """The lines of the table, variant by variant."""
    read = read_config(workdir)
    config = ConfigDict(read["config"])
    corpus = study.load_corpus(config)
    if corpus.fingerprint != read["data_fingerprint"]:
        raise UserError(f"--workdir={workdir}: config.data.path={config.data.path!r} holds another text by now")
    evaluators = Evaluators(config, corpus)
    for variant in variants:
        runs = [path.parent for path in sorted((workdir / "runs" / variant).glob(f"seed_*/{RESULT}"))]
        if not runs:
            known = {path.parts[-3] for path in workdir.glob(f"runs/*/seed_*/{RESULT}")}
            check_known(variant, known, f"--variants: no variant {variant!r} has a finished run here")
        results = {run: read_result(run) for run in runs}
        for codec in codecs:
            found = [_again(run, result, config, evaluators, codec) for run, result in results.items()]
            sizes, losses = zip(*found, strict=True)
            yield _Line(variant, codec, round(interval(sizes).mean), interval(losses))


def _again(
    run: Path, result: Result, config: ConfigDict, evaluators: Evaluators, adapter_codec: str
) -> tuple[int, float]:
    """Bytes of one run's file with another codec, and what it loses."""
    options = ConfigDict({"artifact": {**config.artifact, "adapter_codec": adapter_codec}})
    params = load_params(run / "params", models.build(**result["model"]).abstract_params())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.fjax"
        size = artifact.save(path, params, model=result["model"], **packing(options)).bytes
        apply, loaded, _ = artifact.load(path)
    scored = evaluators.of(result["model"], apply, config.train.to_dict())(loaded)
    return size, scored["val_bpb"] - result["val_bpb"]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
