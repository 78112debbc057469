"""A topology is a text; what is wrong with it, or with this installation, is one line."""

import pytest

from freezejax import aot
from freezejax.aot import topologies
from freezejax.errors import UserError

BAD = {
    "h200:1x1x8": "no chip 'h200'; there are h100, v5e, v5p",
    "h100:8": "expected slices x hosts x GPUs, as h100:1x1x8",
    "h100:1x0x8": "expected slices x hosts",
    "h100": "expected slices x hosts",
    "v5e:2x2x2": "expected chips x chips, as v5e:2x4",
    "v5p:4x4": "expected chips x chips x chips",
    "v5e:twoxfour": "expected chips x chips",
    "": "no chip ''",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_topology_is_told(text):
    with pytest.raises(UserError, match="topology") as told:
        aot.load(text)
    assert BAD[text] in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["h100:1x1x8", "v5e:2x4"])
def test_missing_packages_are_named_with_the_extra(text, monkeypatch):
    monkeypatch.setattr(topologies, "_is_installed", lambda module: False)
    with pytest.raises(UserError, match=r"needs .* install the preflight extra: uv pip install '.\[preflight\]'"):
        aot.load(text)


@pytest.mark.parametrize(
    "held", [b"", b"no such text", b'\0gpu_device\ndevice_description_str: "NVIDIA H100 80GB HBM3"\n\0']
)
def test_a_target_description_that_moved_is_told(held, tmp_path):
    library = tmp_path / "xla_cuda_plugin.so"
    library.write_bytes(held)
    with pytest.raises(UserError, match="does not hold the H100's description where it was"):
        topologies.h100_description(library)
    with pytest.raises(UserError, match="does not hold"):
        topologies.h100_description(tmp_path / "nosuch.so")


def test_the_description_is_the_text_around_its_name(tmp_path):
    text = 'gpu_device_info {\n}\ndevice_description_str: "NVIDIA H100 80GB HBM3"\n'
    library = tmp_path / "library.so"
    library.write_bytes(b"\x7fELF\0other\0" + text.encode() + b"\0more\0")
    assert topologies.h100_description(library) == text


def test_the_h100_of_the_plugin_has_the_memory_that_the_limit_is_a_share_of(compiler, monkeypatch):
    compiler("h100:1x1x8")
    description = topologies.h100_description(topologies._cuda_library())
    assert f"device_memory_size: {aot.CHIPS['h100'].program_bytes}\n" in description
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".5")
    assert aot.CHIPS["h100"].limit == aot.CHIPS["h100"].program_bytes // 2


@pytest.mark.parametrize("share", ["0", "1.5", "much"])
def test_a_bad_share_of_memory_is_told(share, monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", share)
    with pytest.raises(UserError, match="expected a number in"):
        _ = aot.CHIPS["h100"].limit
