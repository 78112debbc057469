"""Which devices a command runs on: chosen at full speed where there is the CPU alone, named, and asked for."""

from types import SimpleNamespace

import jax
import pytest

from experiments.configs import progressive, selective
from experiments.engine import accelerators, cli
from freezejax.errors import UserError

HERE, MISSING = ("null", "no such device*"), ("no such device*",)


@pytest.fixture
def machine(monkeypatch):
    """`machine(plugin, devices, platforms)` -> the configuration that jax would have there."""

    def make(plugin, devices, platforms):
        config = SimpleNamespace(jax_platforms=platforms)
        config.update = lambda name, value: setattr(config, name, value)
        monkeypatch.setattr(accelerators, "_PLUGINS", (plugin,))
        monkeypatch.setattr(accelerators, "_DEVICE_FILES", devices)
        monkeypatch.setattr(accelerators, "jax", SimpleNamespace(config=config))
        return config

    return make


@pytest.mark.parametrize(
    ("plugin", "devices", "platforms", "expected"),
    [
        ("sys", MISSING, None, "cpu"),  # a plugin and nothing to drive
        ("sys", HERE, None, None),
        ("no_such_package", MISSING, None, None),  # some other plugin may be there
        ("sys", MISSING, "cuda", "cuda"),  # the user's word
    ],
)
def test_a_plugin_without_a_device_leaves_commands_on_the_cpu(plugin, devices, platforms, expected, machine):
    config = machine(plugin, devices, platforms)
    accelerators.choose_platform()
    assert config.jax_platforms == expected


@pytest.mark.parametrize(
    ("plugin", "devices", "platforms", "kept"),
    [
        ("sys", MISSING, None, True),
        ("sys", HERE, None, False),
        ("sys", HERE, "cpu", True),
        ("no_such_package", HERE, None, True),
    ],
)
def test_memory_is_kept_where_the_cpu_is_all_there_is(plugin, devices, platforms, kept, machine, monkeypatch):
    machine(plugin, devices, platforms)
    library = SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda number, value: 1)
    monkeypatch.setattr(accelerators, "ctypes", SimpleNamespace(CDLL=lambda _: library))
    monkeypatch.setattr(accelerators, "sys", SimpleNamespace(platform="linux"))
    assert accelerators.keep_freed_memory() == kept


@pytest.mark.parametrize("scale", ["tiny", "cpu"])
@pytest.mark.parametrize("study", [progressive, selective])
def test_small_steps_leave_every_thread_its_heap(study, scale, machine, monkeypatch):
    """XLA compiles faster then. Counterpart: larger blocks outlive a step only in the one heap of all threads."""
    machine("no_such_package", MISSING, None)
    told = []
    library = SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda number, value: told.append(number) or 1)
    monkeypatch.setattr(accelerators, "ctypes", SimpleNamespace(CDLL=lambda _: library))
    accelerators.keep_freed_memory(cli._has_large_steps(study.get_config(scale)))
    assert (-8 in told) == (scale == "cpu")  # M_ARENA_MAX of mallopt(3)
    assert -1 in told


@pytest.fixture
def announce(monkeypatch, capsys):
    """`announce(devices, plugin, required) -> what is printed`, on a machine that jax sees so."""

    def make(devices, plugin="no_such_package", required=False):
        monkeypatch.setattr(accelerators, "_PLUGINS", (plugin,))
        monkeypatch.setattr(accelerators.jax, "devices", lambda: devices)
        values = SimpleNamespace(FLAGS=SimpleNamespace(require_accelerator=required))
        monkeypatch.setattr(accelerators, "flags", values)
        accelerators.announce()
        return capsys.readouterr().out

    return make


CPU = [SimpleNamespace(device_kind="cpu", platform="cpu")] * 2
GPU = [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")] * 8


def test_the_line_names_number_kind_and_platform(announce):
    assert announce(CPU) == "2 x cpu (platform cpu)\n"
    assert announce(GPU, "sys", required=True) == "8 x NVIDIA H100 80GB HBM3 (platform gpu)\n"


def test_a_build_for_gpus_that_runs_on_the_cpu_is_told(announce):
    assert announce(CPU, "sys").endswith("is installed, but jax uses no such device\n")


def test_an_accelerator_that_is_required_and_not_there_ends_the_command(announce):
    with pytest.raises(UserError, match=r"--require_accelerator: there is only 2 x cpu \(platform cpu\)"):
        announce(CPU, required=True)


def test_the_first_line_of_a_command_names_the_devices(command, tmp_path):
    found = accelerators.describe(jax.devices())
    flags = ("--config.variants=baseline", "--config.train.steps=2", "--config.train.seq_len=8")
    ended = command("experiments.progressive", f"--workdir={tmp_path / 'run'}", *flags, "--config.data.path=/nowhere")
    assert ended.out.startswith(found)
    assert ended.out.splitlines()[1] == "No --config is given; this is experiments/configs/progressive.py:tiny"
    ended = command("experiments.progressive", f"--workdir={tmp_path / 'run'}", *flags, "--require_accelerator")
    assert ended.code == 2
    assert ended.err.startswith(f"error: --require_accelerator: there is only {found}")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
