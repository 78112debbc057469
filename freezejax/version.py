"""The version of this package, and those of the packages it stands on."""

import contextlib
from importlib import metadata

__version__ = "0.2.0"


def versions(*packages: str) -> dict[str, str | None]:
    """Version of each package: None where it is not installed. Our own needs no installation.

    >>> versions("freezejax", "no-such-package") == {"freezejax": __version__, "no-such-package": None}
    True
    """
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = __version__ if name == "freezejax" else metadata.version(name)
    return found
