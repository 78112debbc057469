"""The version of this package, and those of the packages it stands on."""

from importlib import metadata

__version__ = "0.2.0"


def versions(*packages: str) -> dict[str, str | None]:
    """Version of each package: None where it is not installed. Our own needs no installation.

    >>> versions("freezejax", "no-such-package") == {"freezejax": __version__, "no-such-package": None}
    True
    """
    return {name: __version__ if name == "freezejax" else _installed(name) for name in packages}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
