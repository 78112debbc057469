"""Results of runs that nobody ran, and their summary: what the tests of summaries, verdicts and tables share."""

import json
from types import SimpleNamespace

from experiments.configs.progressive import get_config
from experiments.engine import summary
from experiments.engine.variants import Paper, Run, Study, Variant
from experiments.engine.workdir import Finished, write_result
from freezejax.schedules import FreezeSchedule

SCHEDULE = FreezeSchedule([(0, [(".*", True)])])
PAPER = [Paper("fineweb", "PR 1301", 4.1, -2.2, "-2.2%")]
CORPUS = SimpleNamespace(
    source="a text", tokenizer=SimpleNamespace(name="bytes"), fingerprint="f" * 64, train=range(1000)
)
LOSSES = {"baseline": [4.0, 5.0, 6.0], "better": [3.9, 4.88, 5.83], "worse": [4.1, 5.1, 6.2], "same": [4.1, 4.9, 6.0]}


def put(workdir, name, seed, loss, base_seed=0, **fields):
    directory = workdir / "runs" / name / Run(name, seed, base_seed).folder
    directory.mkdir(parents=True)
    result = {
        **{"variant": name, "seed": seed, "base_seed": base_seed, "model": {"model_dim": 8}, "tokenizer": "bytes"},
        **{"val_ce": loss, "val_bpb": loss / 2, "tokens": 50, "bytes": 70},
        **{"packed_ce": loss + 0.5, "packed_bpb": (loss + 0.5) / 2},
        **{"trainable_params": 5, "frozen_params": 3, "seeded_params": 2, "stored_bytes_predicted": 30},
        **{"artifact_bytes": 20 + seed, "params_sha256": f"{name}{seed}", "steps": 10, "train_tokens": 1280},
        **{"step_ms_median": 2.0 + seed, "phases": [], **fields},
    }
    (directory / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": loss}) + "\n")
    write_result(directory, result)


def config_of_three_seeds():
    config = get_config("tiny")
    config.seeds = 3
    return config


def summarize(study, workdir, **config):
    finished = Finished(workdir)
    finished.read_all(study)
    values = config_of_three_seeds()
    values.paper = "fineweb" if any(item.papers for item in (*study.variants, *study.contrasts)) else "auto"
    values.update(config)
    return summary.summarize(study, values, CORPUS, finished)


def study_of(*names, **fields):
    return Study("s", [Variant(name, {}, {}, SCHEDULE, **fields) for name in names])


def records_of(workdir, *names):
    finished = Finished(workdir)
    finished.read_all(study_of(*names))
    return list(finished.records(study_of(*names)))


def rows_of(found):
    return {row["name"]: row for row in found["rows"]}
