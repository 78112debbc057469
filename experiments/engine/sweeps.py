"""Runs of a study that differ in their schedule alone, trained together by one program."""

import itertools
import json
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from experiments.engine.results import Session
from experiments.engine.tasks import Task
from experiments.engine.variants import Run, Study, Variant
from freezejax.masks import count_parameters
from freezejax.training.loop import TrainResult
from freezejax.training.metrics import Record, phase_record
from freezejax.training.sweep import sweep
from freezejax.weights import as_matrices

Group = list[tuple[Variant, Run]]


def groups(study: Study, runs: Iterable[tuple[Variant, Run]]) -> Iterator[Group]:
    """Neighbours that one sweep can train; each run by itself where the study, or several processes, want it so.

    >>> a, b = (Variant(name, {}, {"steps": 2}, None) for name in "ab")
    >>> [len(group) for group in groups(Study("s", [a, b], sweep=0), Study("s", [a, b]).runs(2, 1))]
    [2, 2]
    """
    apart = study.sweep is None or jax.process_count() > 1

    def alike(item: tuple[Variant, Run]) -> Any:
        variant, run = item
        shared = json.dumps([dict(variant.model), dict(variant.train)], sort_keys=True, default=str)
        alone = apart or variant.policy is not None
        return run if alone else (run.seed, run.base_seed, shared, variant.minimize, variant.start)

    for _, members in itertools.groupby(runs, alike):
        yield list(members)


def train_together(
    session: Session, first: Variant, task: Task, group: Group
) -> Iterator[tuple[int, TrainResult, list[Record]]]:
    """What each run of a group leaves: its place in the group, its weights and its records.

    A run of many has no time per step of its own.
    """
    objective, batches = first.minimize(task)
    start = None if first.start is None else first.start(task)
    schedules = [variant.schedule for variant, _ in group]
    matrices = as_matrices(task.model.abstract_params())
    total = count_parameters(matrices)
    found = sweep(
        task.model,
        objective,
        batches,
        task.config,
        schedules,
        params=start,
        width=session.study.sweep or 0,
        stop=session.stop,
    )
    for each in found:
        shapes = task.model.abstract_params()
        phases = schedules[each.index].phases(shapes, task.config.steps)

        def placed(record: Record, phases: Any = phases) -> Record:
            if "loss" not in record:
                return record
            number = max(i for i, phase in enumerate(phases) if phase.start < record["step"])
            share = count_parameters(matrices, phases[number].mask) / total
            return {"step": record["step"], "phase": number, "trainable_share": share, **record}

        rules = [rules for _, rules in schedules[each.index].entries]
        begun = [phase_record(shapes, phase, own) for phase, own in zip(phases, rules, strict=True)]
        records = sorted([*begun, *map(placed, each.records)], key=operator.itemgetter("step"))  # in their order
        yield each.index, TrainResult(each.params, task.config.steps, None), records
