"""A table as data, and three ways to write it: for the terminal, as Markdown, as HTML. Nothing here knows a study."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

TERMINAL, MARKDOWN, HTML = "terminal", "markdown", "html"
WIDTH = 100  # columns of text on a terminal
DASH = "–"  # not known, or too few seeds or steps to say


class Column(NamedTuple):
    """One column: its heading, what it takes from an item, how that is written, and in which renderings it stands.

    A column that has a value for no item is left out.

    >>> Column("step", lambda item: item["step"], "{:,}".format).cell({"step": 1200})
    '1,200'
    """

    heading: str
    value: Callable[[Any], Any]  # None where the item has none
    text: Callable[[Any], str] = str
    kind: str = "number"  # set right; "name", "words" and "mark" are set left; a mark is coloured by what it says
    where: Sequence[str] = (TERMINAL, MARKDOWN, HTML)

    def cell(self, item: Any) -> str:
        """The text of one cell; empty where there is no value."""
        return "" if (value := self.value(item)) is None else self.text(value)


def with_ci(mean: float, ci95: float | None, digits: int, unit: str = "") -> str:
    """A figure with its 95 % half-width, where it has one; signed where it has a unit.

    >>> with_ci(1.234, 0.05, 2), with_ci(-2.0, None, 1, "%")
    ('1.23 ±0.05', '-2.0%')
    """
    text = f"{mean:+.{digits}f}" if unit else f"{mean:.{digits}f}"
    return f"{text}{unit}" if ci95 is None else f"{text} ±{ci95:.{digits}f}{unit}"


def typeset(text: str) -> str:
    """The same text with a true minus sign before numbers.

    >>> typeset("-2.2%")
    '−2.2%'
    """
    return re.sub(r"-(?=\d)", "−", text)


def terminal(title: str, columns: Sequence[Column], items: Sequence[Any], *, width: int = WIDTH) -> None:
    """Prints a table at most `width` columns of text wide, and no wider than the terminal; what is longer is folded."""
    console, kept = Console(highlight=False), _kept(columns, items, TERMINAL)
    console.width = min(console.width, width) if console.is_terminal else width
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in kept:
        side, whole = "right" if column.kind == "number" else "left", column.kind == "name"
        table.add_column(column.heading, justify=side, overflow="fold", no_wrap=whole)  # type: ignore[arg-type]
    for item in items:
        table.add_row(*(column.cell(item) for column in kept))
    console.print(table)
    console.print()


def markdown(columns: Sequence[Column], items: Sequence[Any]) -> str:
    """The table in Markdown.

    >>> print(markdown([Column("a", len), Column("b", lambda _: None)], ["xy"]))
    | a |
    |---|
    | 2 |
    """
    kept = _kept(columns, items, MARKDOWN)
    lines = [[column.heading for column in kept], *([column.cell(item) for column in kept] for item in items)]
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(kept), *body])


def html(columns: Sequence[Column], items: Sequence[Any]) -> str:
    """The table as an HTML element; a half-width stands below its figure, an unknown number is a dash.

    >>> html([Column("a", len)], ["xy"])[:66]
    '<div class="wide"><table><thead><tr><th class="number">a</th></tr>'
    """
    kept = _kept(columns, items, HTML)
    return fill("table.html", columns=kept, items=items, dash=DASH, typeset=typeset)


def fill(template: str, **values: Any) -> str:
    """An HTML template of this folder with its values, which it escapes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # benchmarks print tables where it is missing

    folder = FileSystemLoader(Path(__file__).parent)
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    made = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, **blocks)
    return made.get_template(template).render(values)


def _kept(columns: Sequence[Column], items: Sequence[Any], where: str) -> list[Column]:
    shown = [column for column in columns if where in column.where]
    return [column for column in shown if not items or any(column.value(item) is not None for item in items)]
