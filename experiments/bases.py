"""The pretrained model that a study freezes parts of: a folder of the user's, or one pretrained in the workdir."""

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments import pretrain
from experiments.configs import pretrain as configs
from experiments.engine import cli, study
from experiments.engine.pretrained import model_at, tokenizer_of
from experiments.engine.tasks import Start
from experiments.engine.variants import Study
from freezejax import models
from freezejax.models.pretrained import CONFIG
from freezejax.paths import PyTree
from freezejax.roles import Role, leaves

_ENDS = 2**20  # bytes
FOLDER = "base"  # of a workdir, where a base was made for it


class Base(NamedTuple):
    """A pretrained model."""

    path: Path | None  # a folder or a .gguf file; None of one that is not made yet, for --dry_run
    tokenizer: str  # of text that has none of its own, as for config.data.tokenizer

    def model(self, config: ConfigDict, vocab_size: int) -> dict[str, Any]:
        """Family and config, as for `models.build`."""
        changes = {"dropout": config.dropout} if config.dropout else {}
        if self.path is None:
            return {**pretrain.make_study(config.base, vocab_size).variants[0].model, **changes}
        return model_at(self.path, **changes)

    def params(self) -> PyTree:
        """Its weights, float32."""
        assert self.path is not None
        return models.load_pretrained(self.path)[1]

    def fingerprint(self) -> str:
        """Of its files, by names, sizes, and their first and last MiB: of a large model all would take minutes."""
        assert self.path is not None
        found = hashlib.sha256()
        for file in sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]:
            if file.is_file():
                with file.open("rb") as content:
                    found.update(f"{file.name} {(size := file.stat().st_size)} ".encode() + content.read(_ENDS))
                    content.seek(max(0, size - _ENDS))
                    found.update(content.read())
        return found.hexdigest()

    def start(self) -> Start:
        """`Variant.start` of runs that begin with them."""
        return lambda task: self.params()


def get_config(scale: str) -> ConfigDict:
    """`config.base`: which model, or how one is pretrained."""
    config = configs.get_config(scale)
    config.path = ""  # folder of a model in Hugging Face's layout, or a .gguf file; empty = pretrained as said here
    return config


def of_flags(make_study: Callable[..., Study]) -> Base:
    """The base that the flags name, made if need be: the first call in the command of a study.

    `make_study` is that of the command, of a config, a vocabulary and `base`: what cannot run is refused before
    anything is trained for it.
    """
    given = flags.FLAGS
    config = given.config.base
    if config.path:
        path = Path(config.path)
        models.model_of(path)  # refuses what is no model before any text is read
        return Base(path, tokenizer_of(path))
    if given.dry_run:
        return Base(None, config.data.tokenizer)
    workdir = Path(given.workdir).absolute() / FOLDER
    if not (workdir / pretrain.MODEL / CONFIG).exists():
        with tempfile.TemporaryDirectory() as kept:
            tokenizer = _tokenizer_to_be(config, Path(kept))
            study.prepare(functools.partial(make_study, base=Base(None, tokenizer)), given.config, tokenizer)
    print("The base model first:")
    cli.use_compilation_cache()
    study.run_study(pretrain.make_study, config, workdir)  # what is finished is kept, if it is of this config
    path = pretrain.save(config, workdir)
    return Base(path, tokenizer_of(path))


def _tokenizer_to_be(config: ConfigDict, folder: Path) -> str:
    """The tokenizer that a base which is not made yet will have, as a file of that folder."""
    study.load_corpus(config).tokenizer.save(folder, study.TOKENIZER)
    return next((str(file) for file in folder.iterdir()), config.data.tokenizer)


def as_in_papers(model: Mapping[str, Any]) -> bool:
    """Whether a model is of the size that papers 62 to 64 report of: of another their figures are not judged."""
    return model["family"] == "gpt2" and (model["num_layers"], model["model_dim"]) == (8, 256)


def kernels(params: PyTree) -> list[str]:
    """Paths of the matrices inside the blocks, in order. Takes parameters or their shapes."""
    found = [leaf.kernel for leaf in leaves(params) if leaf.role is Role.KERNEL and leaf.path.startswith("blocks/")]
    return list(dict.fromkeys(found))


def short(kernel: str) -> tuple[int, str]:
    """Block and type of a matrix.

    >>> short("blocks/4/attn/c_proj/kernel")
    (4, 'attn_c_proj')
    """
    _, block, *names = kernel.removesuffix("/kernel").split("/")
    return int(block), "_".join(names)
