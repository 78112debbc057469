"""How one step lies on a mesh: the share of every parameter, and of every site's work, that one device has."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from jax.sharding import PartitionSpec

from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.sharding import AXES, spec_of


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; all 1 for a single device.

    >>> MeshShape.of({"fsdp": 8}).devices
    8
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, sizes: Mapping[str, int] | None) -> "MeshShape":
        """From a mapping of axis to size; an axis that is not named has size 1.

        Raises:
          UserError: an unknown axis, or a size below 1.

        >>> MeshShape.of({"fdsp": 8})
        Traceback (most recent call last):
        ...
        freezejax.errors.UserError: mesh: there is no axis 'fdsp'; nearest: fsdp, data, tensor
        """
        for axis, size in (sizes or {}).items():
            if axis not in AXES:
                raise UserError(f"mesh: there is no axis {axis!r}; {nearest(axis, AXES)}")
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UserError(f"mesh: {axis}={size!r}: expected an integer of at least 1")
        return cls(**(sizes or {}))

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch_ways(self) -> int:
        """Devices that split the rows of a batch."""
        return self.data * self.fsdp

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How a parameter is stored, by the table of `freezejax.sharding`.

        >>> MeshShape(fsdp=8).spec("blocks/0/mlp/up/kernel", (64, 128))
        P('fsdp', 'tensor')
        """
        mesh: Any = SimpleNamespace(shape=dataclasses.asdict(self))
        return spec_of(path, shape, mesh)

    def ways(self, path: str, shape: tuple[int, ...]) -> int:
        """Parts that a stored parameter is cut into: its elements per device are its size over this.

        >>> MeshShape(fsdp=4, tensor=2).ways("blocks/0/mlp/up/kernel", (64, 128))
        8
        """
        ways = 1
        for axis in self.spec(path, shape):
            ways *= 1 if axis is None else getattr(self, axis)
        return ways


ONE_DEVICE = MeshShape()
