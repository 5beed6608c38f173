"""MachineConfig: the options of a machine as one value; only what makes a machine needs KVM."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

from pykvm import ConfigError, Machine, MachineConfig, Mode
from pykvm.machine.config import CHECKS

HALT = b"\xfa\xf4"  # cli; hlt


def test_numbers_and_lists_are_kept_as_what_they_stand_for() -> None:
    class Two:
        def __index__(self) -> int:
            return 2

    two: Any = Two()
    modules: list[Any] = [["m", "words"]]
    config = MachineConfig(
        "a",
        mode="real",
        vcpus=two,
        args=["one"],
        modules=modules,
        entry="7C0:0x10",
    )
    assert type(config.vcpus) is int
    assert (config.vcpus, config.mode, config.entry) == (2, Mode.REAL, "07c0:0010")
    assert (config.args, config.modules) == (("one",), (("m", "words"),))


def test_the_defaults_are_what_their_checks_give() -> None:
    """They are not checked each time."""
    defaults = inspect.signature(MachineConfig).parameters
    assert {name: CHECKS[name](name, one.default) for name, one in defaults.items()} == {
        name: one.default for name, one in defaults.items()
    }


def test_devices_that_can_be_listed_once_are_kept() -> None:
    config = MachineConfig(devices=iter(()))
    assert config.devices == ()


@pytest.mark.parametrize(
    ("memory", "size"), [("64M", 64 << 20), (1 << 20, 1 << 20), ("2G", 2 << 30)]
)
def test_ram_is_its_size_in_bytes(memory: int | str, size: int) -> None:
    assert MachineConfig(memory=memory).ram == size


def test_it_is_shown_by_what_is_not_the_default() -> None:
    assert repr(MachineConfig()) == "MachineConfig()"
    config = MachineConfig("a.elf", memory="1G", vcpus=2, irqchip="split")
    assert repr(config) == "MachineConfig('a.elf', memory='1G', vcpus=2, irqchip='split')"
    assert len(repr(MachineConfig(bytes(1 << 20)))) < 400


@pytest.mark.parametrize(
    ("image", "name"),
    [("/x/a.elf", "a.elf"), (Path("b/c"), "c"), (b"\xf4", "bytes"), (None, "bytes")],
)
def test_its_name_is_the_files(image: Any, name: str) -> None:
    assert MachineConfig(image).name == name


def test_a_changed_one_is_checked_again_and_the_first_stays() -> None:
    config = MachineConfig("a", vcpus=1)
    assert config.replace(vcpus=4) == MachineConfig("a", vcpus=4)
    assert config.vcpus == 1
    with pytest.raises(ConfigError, match="clock is one of"):
        config.replace(clock="slow")
    with pytest.raises(AttributeError, match="immutable"):
        config.vcpus = 2  # type: ignore[misc]


def test_it_can_be_pickled() -> None:
    config = MachineConfig("a", memory="1M", fw_cfg={"opt/a": b"x"})
    assert pickle.loads(pickle.dumps(config)) == config


def test_only_the_image_goes_by_position() -> None:
    with pytest.raises(TypeError, match="1 fields by position, not 2"):
        MachineConfig("a", "64M")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'memroy' which it has not"):
        MachineConfig("a", memroy="64M")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "fields",
    [
        {"boot": "elf"},
        {"mode": "real"},
        {"load_address": 0},
        {"append": "a"},
        {"args": ["a"]},
        {"initrd": "a"},
        {"modules": [("a", "")]},
        {"kernel": "a"},
        {"stack": "0:0"},
    ],
)
def test_what_describes_an_image_goes_with_one(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="initrd, modules, kernel and symbols go with an image"):
        MachineConfig(**fields)


def test_fields_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not go with irqchip='kernel'"):
        MachineConfig(clock="warp", irqchip="kernel")


class TestMachine:
    def test_its_signature_is_the_fields(self) -> None:
        assert inspect.signature(Machine) == inspect.signature(MachineConfig)

    def test_a_subclass_has_a_signature_of_its_own(self) -> None:
        class Small(Machine):
            def __init__(self, name: str) -> None:
                super().__init__(name, memory="1M")

        class Same(Machine):
            pass

        assert list(inspect.signature(Small).parameters) == ["name"]
        assert inspect.signature(Same) == inspect.signature(Machine)

    @pytest.mark.kvm
    def test_keywords_are_sugar_for_a_config(self) -> None:
        config = MachineConfig(HALT, mode="real", memory="1M")
        with Machine(HALT, mode="real", memory="1M") as one, Machine(config) as other:
            assert one.config == other.config == config
            assert other.config is config
            assert one.run(timeout=10).outcome == other.run(timeout=10).outcome

    def test_keywords_do_not_stand_beside_a_config(self) -> None:
        with pytest.raises(ConfigError, match="vcpus cannot stand beside a MachineConfig"):
            Machine(MachineConfig(HALT), vcpus=2)
