"""What a prompt shows of a machine and its parts: short, and with what one looks for."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Callable

import pytest

import pykvm
from pykvm import Machine

BARE = re.compile(r"object at 0x")


@pytest.mark.parametrize("irqchip", ["user", "none"])
def test_every_device_names_itself(guest: Callable[..., Machine], irqchip: str) -> None:
    machine = guest("F4   hlt", irqchip=irqchip)
    for name, device in machine.devices.items():
        assert re.fullmatch(rf"<_?\w+ {name}(: .*)?>", repr(device))


def test_a_serial_port_says_how_much_it_printed(guest: Callable[..., Machine]) -> None:
    machine = guest("""
        BA F8 03    mov dx, 0x3f8
        B0 41       mov al, 'A'
        EE          out dx, al
        F4          hlt
    """)
    assert repr(machine.serial) == "<Uart16550 com1: 0 bytes printed>"
    machine.run(timeout=10)
    assert repr(machine.serial) == "<Uart16550 com1: 1 bytes printed>"


def test_the_state_is_shown_in_lines(guest: Callable[..., Machine]) -> None:
    state = guest("F4   hlt").vcpus[0].state
    assert repr(state) == f"<CpuState: {state}>"
    assert max(len(line) for line in repr(state).splitlines()) <= 100


def test_no_public_part_has_a_bare_repr(guest: Callable[..., Machine]) -> None:
    machine = guest("F4   hlt")
    parts = [
        (name, getattr(part, name))
        for part in (machine, machine.vcpus[0])
        for name in dir(part)
        if not name.startswith("_")
    ]
    assert [name for name, part in parts if not callable(part) and BARE.search(repr(part))] == []


def test_help_fits_on_a_few_screens() -> None:
    text = pydoc.plain(pydoc.render_doc(pykvm))
    assert len(text.splitlines()) < 100
    for name in pykvm._HOME:
        assert re.search(rf"\b{name}\b", pykvm.__doc__ or ""), name
