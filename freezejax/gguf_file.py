"""What a .gguf file holds: fields by name, and its tensors, read by the package `gguf`."""

from pathlib import Path
from typing import Any, NamedTuple

from freezejax.errors import UserError


class Gguf(NamedTuple):
    """An open file: nothing but the header is in memory."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Any]  # `gguf.ReaderTensor` by name

    def field(self, name: str, default: Any = None) -> Any:
        """The value of a field; without it and without a default a UserError."""
        value = self.fields.get(name, default)
        if value is None:
            raise UserError(f"{self.path}: no field {name!r}")
        return value


def open_gguf(path: Path) -> Gguf:
    """Reads the header of a file.

    Raises:
      UserError: no such file, not one, cut short, or the package `gguf` is missing.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"{path}: reading .gguf needs the package gguf: pip install 'freezejax[gguf]'") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever a damaged header makes of numpy's reads
        raise UserError(f"{path}: not a whole GGUF file: {' '.join(str(error).split())[:200]}") from None
    return Gguf(path, fields, {tensor.name: tensor for tensor in reader.tensors})
