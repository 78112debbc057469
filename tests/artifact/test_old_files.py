"""Files that an earlier version wrote are read as they were: every kind of weight, each compressor, the seed's bits.

`format2_COMPRESSOR.fjax` were written by 0.2.0 and are never made again: a format that changes gets a number and files
of its own beside them. What they hold is said by `format2.json`, as it was computed when they were written.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from freezejax import artifact
from freezejax.training.state import fingerprint
from freezejax.weights import KINDS

HERE = Path(__file__).parent
SAID = json.loads((HERE / "format2.json").read_text(encoding="utf-8"))
TOKENS = np.arange(18, dtype=np.int32).reshape(2, 9) * 5 % 70


@pytest.mark.parametrize("compressor", SAID["bytes"])
def test_an_old_file_is_the_model_it_was(compressor):
    path = HERE / f"format2_{compressor}.fjax"
    assert path.stat().st_size == SAID["bytes"][compressor]
    apply, params, about = artifact.load(path)
    assert fingerprint(params) == SAID["params_sha256"]
    assert about["notes"] == SAID["notes"]
    np.testing.assert_allclose(np.asarray(apply(params, TOKENS))[:, -1, :8], SAID["logits"], atol=2e-5)


def test_nothing_that_an_old_file_needs_is_gone():
    assert SAID["bytes"].keys() <= set(artifact.COMPRESSORS)
    kinds = {rule["kind"] for rule in artifact.load(HERE / "format2_none.fjax")[2]["model"]["weights"]}
    assert kinds <= KINDS.keys()
    assert len(kinds) == 12, kinds  # all that there were but `each`, which stands for stacks alone
