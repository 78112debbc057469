"""What a study declares: variants, contrasts, the figures it compares and their evaluation, the paper's figures.

A claim of the paper is judged on the corpus it was made on, or not at all.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine.tasks import Decide, Evaluate, Minimize, Start, language_modelling
from freezejax.data import Corpus
from freezejax.errors import UserError
from freezejax.paths import PyTree, nearest
from freezejax.schedules import FreezeSchedule
from freezejax.sharding import Layout
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import Apply, make_evaluator


class Figure(NamedTuple):
    """A figure that an evaluation gives; lower is better. It is taken of the trained weights and of the packed file."""

    name: str
    label: str
    unit: str = ""

    @property
    def heading(self) -> str:
        """What stands over a column or beside an axis: "CE, nats/token"."""
        return ", ".join(filter(None, (self.label, self.unit)))

    @property
    def trained(self) -> str:
        """Field of an evaluation and of `result.json`."""
        return f"val_{self.name}"

    @property
    def packed(self) -> str:
        """Field of `result.json`: the same of the weights loaded back from the packed file."""
        return f"packed_{self.name}"


Measure = Callable[[PyTree], Mapping[str, float]]  # of trained weights: a number for each of some places in them
LANGUAGE = (Figure("ce", "CE", "nats/token"), Figure("bpb", "bits/byte"))


@dataclasses.dataclass(frozen=True)
class Paper:
    """A figure of a source document, and what it claims, in percent against the document's own reference."""

    corpus: str  # what the document measured it on, see `CORPORA`; `ANY` where it does not say
    source: str
    value: float | None  # None where the source gives the difference alone
    delta_pct: float
    claim: str
    reference: str = ""  # the variant that stands for the document's reference; "" = the baseline


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a study: a model, how it trains, and what is frozen when.

    Random maps are part of the model's config and cost no stored bytes; every other weight is stored, frozen or not.
    """

    name: str
    model: Mapping[str, Any]  # family and its config, as for `models.build`
    train: Mapping[str, Any]  # fields of TrainConfig; a `seed` is added to that of each run
    schedule: FreezeSchedule
    base_seeds: bool = False  # runs with every base seed, not with the first alone
    same_bytes_as: str = ""  # a control: the variant whose file this one's is to match in size
    papers: Sequence[Paper] = ()  # one per corpus at most
    minimize: Minimize = language_modelling
    start: Start | None = None  # weights to start from; None = those of the model and the seed
    measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)  # as of a study, of its weights alone
    policy: Decide | None = None  # what decides on the way what is frozen; `schedule` has then one entry
    needs: Sequence[str] = ()  # earlier variants whose runs `minimize` and `start` read
    teacher: Mapping[str, Any] | None = None  # a model that runs forward on every batch, for --dry_run


class Run(NamedTuple):
    """One run: a variant, the seed it trains with, and the base seed that its random maps come from.

    >>> Run("selective", 0).folder, Run("selective", 0, 1).folder, Run("selective", 0, 1).title
    ('seed_0', 'seed_0_base_1', 'selective, seed 0, base seed 1')
    """

    variant: str
    seed: int
    base_seed: int = 0

    @property
    def folder(self) -> str:
        """Name of the run's folder, inside that of its variant."""
        return f"seed_{self.seed}" + f"_base_{self.base_seed}" * (self.base_seed > 0)

    @property
    def title(self) -> str:
        """What the terminal calls the run."""
        return f"{self.variant}, seed {self.seed}" + f", base seed {self.base_seed}" * (self.base_seed > 0)

    def directory(self, workdir: Path) -> Path:
        """The run's folder in that of the study."""
        return workdir / "runs" / self.variant / self.folder


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A paired comparison the study reports: `variant` against `reference`, on the same seeds."""

    variant: str
    reference: str
    question: str
    papers: Sequence[Paper] = ()
    # Variants whose effects against the same reference are taken away: what is left is the interaction of the parts.
    less: Sequence[str] = ()

    @property
    def names(self) -> set[str]:
        """Every variant that it reads."""
        return {self.variant, self.reference, *self.less}


class Evaluators:
    """The evaluations of a study on the validation text of a corpus, of weights as trained and of those from a file.

    Runs of one model share one: it is traced and compiled once. A study that compares other figures overrides `make`.
    """

    def __init__(self, config: ConfigDict, corpus: Corpus) -> None:  # noqa: D107
        self.config, self.corpus = config, corpus
        self._known: dict[Any, Evaluate] = {}

    def of(
        self, model: Mapping[str, Any], apply: Apply, train: Mapping[str, Any], layout: Layout | None = None
    ) -> Evaluate:
        """The evaluation of a model: `model` is its config, `apply` what that stands for, `train` how it trains."""
        train_config = TrainConfig.from_mapping(train)
        key = (json.dumps(model, sort_keys=True), train_config.seq_len, train_config.compute_dtype, layout is None)
        if key not in self._known:
            self._known[key] = self.make(apply, train_config, layout)
        return self._known[key]

    def make(self, apply: Apply, train: TrainConfig, layout: Layout | None) -> Evaluate:
        """An evaluation of parameters; of language: `val_ce`, `val_bpb`, and the `tokens` and `bytes` scored."""
        val, wanted = self.corpus.val, self.config.data.val_sequences
        windows = (len(val) - 1) // train.seq_len
        evaluate = make_evaluator(
            apply,
            val,
            self.corpus.tokenizer.byte_table(),
            batch_size=self.config.data.eval_batch_size,
            seq_len=train.seq_len,
            compute_dtype=train.compute_dtype,
            layout=layout,
            every=max(1, windows // wanted) if wanted else 1,  # keeps at least as many as are wanted; 0 wants all
        )
        return lambda params: evaluate(params)._asdict()


def half_of_validation(index: int) -> Callable[[ConfigDict, Corpus], Evaluators]:
    """`Study.evaluators` on the first (0) or the second (1) half of the validation text alone.

    What is chosen on one half can be judged on the other.
    """

    def make(config: ConfigDict, corpus: Corpus) -> Evaluators:
        middle = len(corpus.val) // 2
        half = corpus.val[:middle] if index == 0 else corpus.val[middle:]
        return Evaluators(config, dataclasses.replace(corpus, val=half))

    return make


def every_pair(seeds: int, base_seeds: int) -> Iterator[tuple[int, int]]:
    """Every (seed, base seed), all of the first base seed before any of the next."""
    return ((seed, base_seed) for base_seed, seed in itertools.product(range(base_seeds), range(seeds)))


Findings = Callable[[Mapping[str, Any]], Sequence[str]]  # of a summary: sentences, by rule


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file declares: its variants (the first is the baseline), its contrasts, what it compares.

    Effects and verdicts are on the first of the figures; the spread over seeds and what packing does, on the last.
    """

    name: str
    variants: Sequence[Variant]
    contrasts: Sequence[Contrast] = ()
    figures: Sequence[Figure] = LANGUAGE
    evaluators: Callable[[ConfigDict, Corpus], Evaluators] = Evaluators  # they give `val_NAME` of every figure
    check: Callable[[Corpus], None] | None = None  # refuses a corpus that what the config names does not fit
    pairs: Callable[[int, int], Iterable[tuple[int, int]]] = every_pair  # of config.seeds and config.base_seeds
    measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)  # what else is told of trained weights
    findings: Findings = lambda found: ()  # what else its summary says
    files: bool = True  # whether a run leaves its weights, and packed into a file, which is scored again
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)  # digests of what it reads beside the corpus
    # How many runs that differ in their schedule alone train at a time: 0 = as many as fit, None = each by itself.
    sweep: int | None = None

    @property
    def fields(self) -> list[str]:
        """The figures that every result has beside what all studies' have."""
        of_files = [*(figure.packed for figure in self.figures), "artifact_bytes"] if self.files else []
        return [*(figure.trained for figure in self.figures), *of_files]

    def runs(self, seeds: int, base_seeds: int) -> Iterator[tuple[Variant, Run]]:
        """Every run, in order.

        >>> [run.folder for _, run in Study("s", [Variant("a", {}, {}, None, base_seeds=True)]).runs(2, 2)]
        ['seed_0', 'seed_1', 'seed_0_base_1', 'seed_1_base_1']
        """
        for (seed, base_seed), variant in itertools.product(self.pairs(seeds, base_seeds), self.variants):
            if base_seed == 0 or variant.base_seeds:
                yield variant, Run(variant.name, seed, base_seed)

    def before(self, variant: Variant) -> list[Variant]:
        """The variants whose runs those of a variant need, directly or through others, each once.

        >>> a, b, c = (Variant(name, {}, {}, None, needs=needs) for name, needs in zip("abc", ("", "a", "ab")))
        >>> [needed.name for needed in Study("s", [a, b, c]).before(c)]
        ['a', 'b']
        """
        names = [*variant.needs]
        for name in names:  # grows
            names += [other for v in self.variants if v.name == name for other in v.needs if other not in names]
        return [other for other in self.variants if other.name in names]


def select(study: Study, wanted: str) -> Study:
    """The study with only the named variants (comma separated; empty = all), what they need, and the baseline first."""
    if not wanted:
        return study
    needs = {variant.name: variant.needs for variant in study.variants}
    names = list(needs)
    chosen = [names[0], *(name.strip() for name in wanted.split(","))]
    for name in chosen:  # grows
        if name not in needs:
            raise UserError(f"config.variants: no variant is named {name!r}; {nearest(name, names)}")
        chosen += [other for other in needs[name] if other not in chosen]
    variants = [variant for variant in study.variants if variant.name in chosen]
    contrasts = [contrast for contrast in study.contrasts if contrast.names <= set(chosen)]
    return dataclasses.replace(study, variants=variants, contrasts=contrasts)


ANY = "any"  # the corpus of a paper that names none: its claims are judged on all
# `freezejax.data.Corpus.fingerprint` (both token files and the tokenizer) -> the corpus as the paper names it.
# A sample counts as its corpus, with either of the paper's tokenizers: its claims are of the corpus, not of one part.
CORPORA = {
    # Project Gutenberg 11, 84, 1342 and 1661 as distributed, as bytes, the last tenth of each for validation.
    "ffaefeba6a9d4478972b6b8c140815b1c4b9433279420af67e11013373cfffc6": "gutenberg",
    # 200 training documents of FineWeb, and the first 65,536 tokens of the challenge's sp1024 validation split.
    "519e3b3e30640e08875236d6f814b980912ed4b650236422688ea081a41857b7": "fineweb",  # sp1024
    "fcdc44af4d524884f4165f62ade2f628b7313b5a00dd2e83d2efb6eaf1fa092b": "fineweb",  # sp4096
}


def paper_corpus(study: Study, wanted: str, fingerprint: str) -> str:
    """The corpus whose figures of the paper stand beside a study's; "" = none.

    `wanted` is `config.paper`: a corpus, by the word of whoever runs the study; "none"; or "auto": by fingerprint.
    Refuses a corpus of which the paper reports nothing in this study.
    """
    papers = [*(v.papers for v in study.variants), *(c.papers for c in study.contrasts)]
    known = sorted({paper.corpus for of_item in papers for paper in of_item})
    if wanted not in ("auto", "none", *known):
        raise UserError(f"config.paper={wanted!r}: expected {', '.join(('auto', *known))} or none")
    found = CORPORA.get(fingerprint, "") if wanted == "auto" else wanted
    found = ANY if wanted == "auto" and found not in known else found
    return found if found in known else ""


def paper_of(papers: Sequence[Paper], corpus: str) -> Paper | None:
    """The paper's figure on a corpus, if it has one, or one of no corpus; none where `corpus` is "".

    >>> claims = [Paper("fineweb", "PR 1", None, -1.0, "better"), Paper(ANY, "PR 1", None, 0.0, "no effect")]
    >>> [paper_of(claims, corpus).claim for corpus in ("fineweb", "any", "gutenberg")], paper_of(claims, "")
    (['better', 'no effect', 'no effect'], None)
    """
    return next((paper for paper in papers if corpus and paper.corpus in (corpus, ANY)), None)
