"""An extension of griffe: the examples of a docstring, which run as doctests, are shown as code."""

import re
from typing import Any

import griffe

# From a line with >>> to the next empty line.
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?!\s*\n).+)*", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Puts fences around them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class and function."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
