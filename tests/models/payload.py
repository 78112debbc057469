"""A pickle that says so where it is unpickled."""

import pickle
from pathlib import Path

RAN = "ran"  # the file that it leaves


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def payload(folder: Path) -> bytes:
    """It leaves the file in this folder."""
    return pickle.dumps(_Touch(folder / RAN))
