"""Training and scoring on puzzles: the loss is of the answers alone, and an answer counts where all of it is right."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from freezejax.data import Tokenizer
from freezejax.data.puzzles import Puzzle, answered
from freezejax.errors import UserError
from freezejax.models import Model, generate
from freezejax.paths import PyTree
from freezejax.sharding import BATCH
from freezejax.training import processes
from freezejax.training.batches import token_batch
from freezejax.training.config import TrainConfig
from freezejax.training.programs.compiler import compiler_options
from freezejax.training.programs.tracing import OneTrace

SHOWN = " -> "  # between question and answer of an example
END = "\n"  # what an answer ends with; it is learned and scored, too


def encoded(
    puzzles: Sequence[Puzzle], tokenizer: Tokenizer, seq_len: int, *, shown: bool = False
) -> dict[str, np.ndarray]:
    """Puzzles as rows: `inputs` and `targets`, int32 [N, T], and `weights`, float32 [N, T], 1 at tokens of an answer.

    With `shown` the answers of the examples in the prompt, what follows " -> " in a line, weigh as well.

    Raises:
      UserError: a puzzle of more than `seq_len + 1` tokens, or a tokenizer that has no line's end.

    >>> from freezejax.data import ByteTokenizer
    >>> encoded([Puzzle("numerals", "4 -> ", "IV")], ByteTokenizer(), 8)["weights"]
    array([[0., 0., 0., 0., 1., 1., 1., 0.]], dtype=float32)
    """
    _end_of(tokenizer)
    rows: dict[str, np.ndarray] = {name: np.zeros((len(puzzles), seq_len), np.int32) for name in ("inputs", "targets")}
    rows["weights"] = np.zeros((len(puzzles), seq_len), np.float32)
    for row, puzzle in enumerate(puzzles):
        prompt, answer = tokenizer.encode(puzzle.prompt), tokenizer.encode(puzzle.answer + END)
        tokens = np.concatenate([prompt, answer])
        if len(tokens) > seq_len + 1:
            raise UserError(
                f"a puzzle of {puzzle.family} has {len(tokens)} tokens; seq_len={seq_len} takes {seq_len + 1}"
            )
        rows["inputs"][row, : len(tokens) - 1] = tokens[:-1]
        rows["targets"][row, : len(tokens) - 1] = tokens[1:]
        rows["weights"][row, len(prompt) - 1 : len(tokens) - 1] = 1
        if shown:
            rows["weights"][row, : len(prompt) - 1] = _in_examples(puzzle.prompt, prompt, tokenizer)[1:]
    return rows


def _in_examples(prompt: str, tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens of a prompt are of an example's answer or its end."""
    *lines, last = prompt.splitlines(keepends=True)
    parts = [part for line in lines for part in (line.partition(SHOWN)[:2], line.partition(SHOWN)[2:])]
    pieces = [tokenizer.encode("".join(part)) for part in [*parts, (last,)]]
    if not np.array_equal(np.concatenate(pieces), tokens):
        raise UserError(f"the tokenizer {tokenizer.name} joins a question and its answer: learn the last answers alone")
    return np.concatenate([np.full(len(piece), i % 2 == 1 and i < len(parts)) for i, piece in enumerate(pieces)])


def _end_of(tokenizer: Tokenizer) -> int:
    """The token that ends an answer."""
    found = tokenizer.encode(END)
    if len(found) != 1 or tokenizer.decode(found) != END:
        raise UserError(f"the tokenizer {tokenizer.name} has no token for a line's end, which an answer ends with")
    return int(found[0])


class AnswerBatches:
    """Batches of puzzles for `LanguageModelling`, in an order that depends on `config.seed` alone; see `encoded`.

    Every puzzle comes once before any comes again.

    Raises:
      UserError: as `encoded`; fewer puzzles than a batch has rows; a mesh that gives this process no share of them.
    """

    def __init__(
        self,
        puzzles: Sequence[Puzzle],
        tokenizer: Tokenizer,
        config: TrainConfig,
        mesh: Mesh | None = None,
        *,
        shown: bool = False,
    ) -> None:
        """Encodes all of them."""
        if len(puzzles) < config.batch_size:
            raise UserError(f"{len(puzzles)} puzzles are too few for batches of {config.batch_size}")
        self._rows = encoded(puzzles, tokenizer, config.seq_len, shown=shown)
        self._size, self._seed, self._at = config.batch_size, config.seed, 0
        weights = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), jnp.float32)
        self.abstract: dict[str, Any] = {**token_batch(config), "weights": weights}
        self._share, self._shares = 0, 1
        if mesh is not None:
            rows = NamedSharding(mesh, PartitionSpec(BATCH))
            self._share, self._shares = processes.rows_of_process(rows, self.abstract["inputs"].shape)

    def __next__(self) -> dict[str, np.ndarray]:
        """This process's rows of the next batch."""
        mine = self._size // self._shares
        start = self._at * self._size + self._share * mine
        chosen = [self._row(place) for place in range(start, start + mine)]
        self._at += 1
        return {name: values[chosen] for name, values in self._rows.items()}

    def _row(self, place: int) -> int:
        epoch, within = divmod(place, len(self._rows["inputs"]))
        return int(self._order(epoch)[within])

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a source lives as long as its run
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._rows["inputs"]))

    def get_state(self) -> dict[str, Any]:
        """How many batches were given."""
        return {"batches": self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after so many."""
        self._at = int(state["batches"])


class Scores(NamedTuple):
    """Of every puzzle, in the order in which they were given."""

    nats_N: np.ndarray  # float64, of the whole answer, its end among it
    tokens_N: np.ndarray  # int64, that these are of
    right_N: np.ndarray  # bool, whether the likeliest text is the answer


class Scorer(NamedTuple):
    """Two functions of a model's parameters."""

    scores: Callable[[PyTree], Scores]
    nats: Callable[[PyTree], np.ndarray]  # `Scores.nats_N` alone, which takes no writing of answers


def make_scorer(
    model: Model,
    puzzles: Sequence[Puzzle],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int = 64,
    compute_dtype: DTypeLike = jnp.float32,
) -> Scorer:
    """What a model makes of puzzles: the likelihood of the answers, and what it puts there by itself, greedily.

    Raises:
      UserError: as `encoded`, or no puzzles.
    """
    if not puzzles:
        raise UserError("no puzzles to score on")
    rows, end = encoded(puzzles, tokenizer, seq_len), _end_of(tokenizer)
    tokens_N = rows["weights"].sum(axis=1).astype(np.int64)
    rows = {name: np.pad(values, [(0, -len(puzzles) % batch_size), (0, 0)]) for name, values in rows.items()}
    prompts = [tokenizer.encode(puzzle.prompt).tolist() for puzzle in puzzles]

    def nats_B(params: PyTree, batch: dict[str, jax.Array]) -> jax.Array:
        options = {"targets_BxT": batch["targets"], "compute_dtype": jnp.dtype(compute_dtype)}
        return jnp.sum(model.apply(params, batch["inputs"], **options) * batch["weights"], axis=1)

    score = OneTrace(nats_B, "answers", compiler_options=compiler_options())
    # All batches of one shape, so that one program writes them: the last is filled up.
    options: dict[str, Any] = {"tokens": int(tokens_N.max()), "length": max(map(len, prompts)), "stop": end}
    prompts += [prompts[-1]] * (-len(prompts) % batch_size)

    starts = range(0, len(prompts), batch_size)

    def nats(params: PyTree) -> np.ndarray:
        found = [score(params, {n: v[at : at + batch_size] for n, v in rows.items()}) for at in starts]
        return np.concatenate(jax.device_get(found))[: len(puzzles)].astype(np.float64)

    def scored(params: PyTree) -> Scores:
        texts = [
            text
            for at in starts
            for text in generate(model, params, prompts[at : at + batch_size], compute_dtype=compute_dtype, **options)
        ]
        right = [answered(puzzle, tokenizer.decode(text)) for puzzle, text in zip(puzzles, texts, strict=False)]
        return Scores(nats(params), tokens_N, np.array(right))

    return Scorer(scored, nats)


def by_family(puzzles: Sequence[Puzzle], scores: Scores) -> Mapping[str, tuple[float, float]]:
    """Of every family, in the order of the puzzles: nats per token of its answers, and the share that is right."""
    of: dict[str, list[int]] = {}
    for i, puzzle in enumerate(puzzles):
        of.setdefault(puzzle.family, []).append(i)
    return {
        family: (float(scores.nats_N[rows].sum() / scores.tokens_N[rows].sum()), float(scores.right_N[rows].mean()))
        for family, rows in of.items()
    }
