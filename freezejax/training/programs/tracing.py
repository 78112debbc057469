"""Each program is traced once: traces are counted, and a call that would need another one is refused by name."""

import contextlib
import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax

from freezejax.errors import UserError
from freezejax.paths import path_string

_TREE = " (tree)"
_counters: dict[int, Counter[str]] = {}  # by identity: two with the same counts are equal


class RetraceError(UserError):
    """A program was called with other arguments than those it was traced or compiled for; see `Program`."""

    def __init__(self, name: str, changes: list[str]) -> None:
        """Takes the program's name and what changed, one line per argument."""
        shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
        super().__init__(f"{name}: called with other arguments than it was traced for: {shown}")


@contextlib.contextmanager
def count_traces() -> Iterator[Counter[str]]:
    """Counts, by name, every trace of a function made with `traced` while the block runs, on all threads.

    >>> with count_traces() as traces:
    ...     _ = jax.jit(traced(lambda x: 2 * x, "double")).lower(1.0)
    >>> dict(traces)
    {'double': 1}
    """
    counter: Counter[str] = Counter()
    _counters[id(counter)] = counter
    try:
        yield counter
    finally:
        del _counters[id(counter)]


def traced[**P, R](fn: Callable[P, R], name: str) -> Callable[P, R]:
    """`fn` that notes each time it runs, which under `jax.jit` is each time it is traced: see `count_traces`."""

    @functools.wraps(fn)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        for counter in list(_counters.values()):
            counter[name] += 1
        return fn(*args, **kwargs)

    return noted


class OneTrace:
    """`jax.jit(fn)` for one set of shapes: the first call fixes them, a call with others is refused before it traces.

    Shapes, dtypes, weak types, shardings, values of static arguments and the structure of trees all count. The refusal
    is that of `Program`.
    """

    def __init__(
        self, fn: Callable[..., Any], name: str, static_argnums: tuple[int, ...] = (), **jit_arguments: Any
    ) -> None:
        """Takes the function, its name in counts and errors, which arguments are static, and others of `jax.jit`."""
        self.name, self._names, self._static = name, list(inspect.signature(fn).parameters), static_argnums
        self._jitted = jax.jit(traced(fn, name), static_argnums=static_argnums, **jit_arguments)
        self._known: Any = None
        self._description: dict[str, str] = {}

    def __call__(self, *args: Any) -> Any:
        """The result. Raises RetraceError where the arguments are not like those of the first call."""
        # A string, which JAX takes for no argument, stands for a static one.
        shown = tuple(f"static {arg!r}" if i in self._static else arg for i, arg in enumerate(args))
        leaves, structure = jax.tree.flatten(shown)
        found = (structure, *map(_kind, leaves))
        if self._known is None:
            self._known, self._description = found, describe_arguments(shown, self._names)
        elif found != self._known and (lines := changes(self._description, describe_arguments(shown, self._names))):
            raise RetraceError(self.name, lines)
        return self._jitted(*args)


class Program:
    """An executable compiled ahead of time, whose refusal of other arguments names them.

    >>> import jax.numpy as jnp
    >>> batch, double = {"inputs": jax.ShapeDtypeStruct((8, 256), jnp.int32)}, lambda batch: 2 * batch["inputs"]
    >>> program = Program(jax.jit(double).lower(batch).compile(), double, (batch,), "double")
    >>> program({"inputs": jnp.ones((7, 256), jnp.int32)})
    Traceback (most recent call last):
    ...
    freezejax.training.programs.tracing.RetraceError: double: called with other arguments than it was traced for: \
batch/inputs: int32[8,256] -> int32[7,256]
    """

    def __init__(self, compiled: Any, fn: Callable[..., Any], arguments: tuple[Any, ...], name: str) -> None:
        """Takes the executable, the function it was made of, the abstract arguments and a name for errors."""
        self.compiled, self.name, self._names = compiled, name, list(inspect.signature(fn).parameters)
        self._description = describe_arguments(arguments, self._names)

    def __call__(self, *args: Any) -> Any:
        """The result; costs nothing beyond the executable's own call."""
        try:
            return self.compiled(*args)
        except (TypeError, ValueError) as error:
            if lines := changes(self._description, describe_arguments(args, self._names)):
                raise RetraceError(self.name, lines) from error
            raise


def describe_arguments(args: tuple[Any, ...], names: list[str]) -> dict[str, str]:
    """What decides about a trace, by argument path; static fields of a tree stand under the argument's name."""
    found, trees = {}, {}
    for name, arg in zip(names, args, strict=False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg):
            found[path_string((jax.tree_util.DictKey(name), *path))] = _text(leaf)
        trees[name + _TREE] = str(jax.tree.structure(arg))
    return found | trees


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """One line per argument that differs. Shardings are told of only where nothing else differs, trees likewise."""
    lines, trees, moved = list[str](), list[str](), list[str]()
    for path in dict.fromkeys([*before, *now]):
        old, new = before.get(path, "absent"), now.get(path, "absent")
        (old_kind, _, where), (new_kind, _, there) = old.partition(" on "), new.partition(" on ")
        if path.endswith(_TREE):
            trees += [_line(path, old, new)] if old != new else []
        elif old_kind != new_kind:
            lines.append(_line(path, old_kind, new_kind))
        elif where and there and where != there:  # an abstract argument, or one on the host, need not have one
            moved.append(_line(path, old, new))
    return lines or trees[:1] or moved


def _line(path: str, old: str, new: str) -> str:
    if len(old) + len(new) >= 200:  # what stands around the first difference
        at = next(i for i, (a, b) in enumerate(itertools.zip_longest(old, new)) if a != b)
        old, new = (f"...{text[max(0, at - 40) : at + 60]}..." for text in (old, new))
    return f"{path}: {old} -> {new}"


def _kind(leaf: Any) -> Any:
    """What decides about a trace, cheaply, as something to compare."""
    return leaf if isinstance(leaf, str) else (jax.typeof(leaf), getattr(leaf, "sharding", None))


def _text(leaf: Any) -> str:
    if isinstance(leaf, str):
        return leaf
    kind = leaf if hasattr(leaf, "shape") else jax.typeof(leaf)
    weak = "weak " if getattr(kind, "weak_type", False) else ""
    text = f"{weak}{kind.dtype}[{','.join(map(str, kind.shape))}]"
    if kind is not leaf:
        return f"{text} (a Python {type(leaf).__name__})"
    return text if getattr(leaf, "sharding", None) is None else f"{text} on {leaf.sharding}"
