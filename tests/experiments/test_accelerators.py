"""The preflight extra brings plugins without a device: commands then stay on the CPU, in silence and at full speed."""

from types import SimpleNamespace

import pytest

from experiments.engine import accelerators, cli, host_memory

HERE, MISSING = ("null", "no such device*"), ("no such device*",)


@pytest.fixture
def machine(monkeypatch):
    """`machine(plugin, devices, platforms)` -> the configuration that jax would have there."""

    def make(plugin, devices, platforms):
        config = SimpleNamespace(jax_platforms=platforms)
        config.update = lambda name, value: setattr(config, name, value)
        monkeypatch.setattr(accelerators, "_PLUGINS", (plugin,))
        monkeypatch.setattr(accelerators, "_DEVICE_FILES", devices)
        for module in (cli, host_memory):
            monkeypatch.setattr(module, "jax", SimpleNamespace(config=config))
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
    cli.choose_platform()
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
    monkeypatch.setattr(host_memory, "ctypes", SimpleNamespace(CDLL=lambda _: library))
    monkeypatch.setattr(host_memory, "sys", SimpleNamespace(platform="linux"))
    assert host_memory.keep_freed_memory() == kept
