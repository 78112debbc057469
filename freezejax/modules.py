"""Which modules of a model are frozen as a whole: those whose statistics and dropout have to stand still, too."""

from collections.abc import Callable, Sequence
from typing import Any

from freezejax.errors import UserError
from freezejax.masks import check_static
from freezejax.paths import PyTree, by_path, nearest, path_string


def frozen_modules(mask: PyTree) -> Callable[[str | Sequence[Any]], bool]:
    """Function from the path of a module to whether the mask freezes all of it.

    A mask speaks of parameters alone: a frozen BatchNorm goes on updating its running statistics and normalizes by
    those of the batch, and a frozen layer goes on dropping units, until it is in its framework's inference mode:

    - Flax linen: `nn.BatchNorm(use_running_average=not train or frozen("params/stem"))`, `nn.Dropout(...,
      deterministic=not train or frozen("params/stem"))`.
    - Flax nnx: `module.eval()` for each `path, module in nnx.iter_modules(model)` with `frozen(path)`.
    - Equinox: `eqx.nn.inference_mode` of each submodule with `frozen(path)`.

    A module without parameters, such as a dropout, is as frozen as the module that it stands in.

    Returns:
      `frozen(path)`: the path is a string joined by `/`, a tuple of names and numbers, or a JAX key path.

    Raises:
      UserError: the mask is no tree of Python bools; (when called) a path in one string that names no module of it,
        nor anything in one.

    >>> frozen = frozen_modules({"stem": {"kernel": False, "bias": False}, "head": {"kernel": True, "bias": False}})
    >>> frozen("stem"), frozen("stem/dropout"), frozen(("head",))
    (True, True, False)
    """
    check_static(mask, mask)
    trains: dict[str, bool] = {"": False}
    for path, trainable in by_path(mask).items():
        parts = path.split("/")
        for depth in range(len(parts) + 1):
            module = "/".join(parts[:depth])
            trains[module] = trains.get(module, False) or bool(trainable)

    def frozen(path: str | Sequence[Any]) -> bool:
        module = path if isinstance(path, str) else path_string(tuple(path))
        while module not in trains:
            module = module.rpartition("/")[0]
        # A path spelt by hand is checked; one from a walk over modules may name a dropout at the top of the model.
        if isinstance(path, str) and path and not module:
            raise UserError(f"frozen_modules: the mask has no module {path!r}; {nearest(path, list(trains)[1:])}")
        return not trains[module]

    return frozen
