"""What a prompt shows of a machine and its parts: short, and with what one looks for."""

from __future__ import annotations

import pydoc
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import pykvm
from pykvm import Machine
from pykvm.x86.entry import protected_mode

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
    assert repr(machine.serial) == "<Console com1: 0 bytes printed>"
    machine.run(timeout=10)
    assert repr(machine.serial) == "<Console com1: 1 byte printed>"
    machine.serial.send("no")
    assert repr(machine.serial) == "<Console com1: 1 byte printed, 2 to read>"


def test_a_machine_says_what_it_runs(guests: Path) -> None:
    machine = Machine(guests / "hello.elf", memory="2M", vcpus=2)
    with machine:
        memory = "<GuestMemory: ram 0x0-0x200000>"
        assert repr(machine) == f"<Machine hello.elf stopped: 2 vCPUs, {memory}>"
        seen: list[str] = []
        machine.run(timeout=10, on_exit=lambda cpu, exit: seen.append(repr(machine)))
        assert seen[0] == f"<Machine hello.elf running: 2 vCPUs, {memory}>"
    assert repr(machine) == "<Machine hello.elf closed>"


def test_a_vcpu_says_where_it_is(guest: Callable[..., Machine]) -> None:
    machine = guest("F4   hlt", vcpus=2)
    first, second = machine.vcpus
    assert repr(first) == "<CPU 0: real mode, at 0x7c00>"
    assert repr(second) == "<CPU 1 parked>"
    second.parked = False
    second.state = protected_mode(eip=0x12_3456, esp=0, gdt_base=0)
    assert repr(second) == "<CPU 1: protected mode, at 0x123456>"
    machine.close()
    assert (repr(first), repr(second)) == ("<CPU 0 closed>", "<CPU 1 closed>")


def test_a_vcpu_in_the_guest_is_not_waited_for(guest: Callable[..., Machine]) -> None:
    machine = guest("EB FE   jmp $")
    inside = threading.Event()
    thread = threading.Thread(
        target=machine.run, kwargs={"timeout": 60, "until": lambda _: inside.set()}
    )
    thread.start()
    try:
        assert inside.wait(60)
        assert repr(machine.vcpus[0]) == "<CPU 0 running>"
    finally:
        machine.stop()
        thread.join()
    assert repr(machine.vcpus[0]) == "<CPU 0: real mode, at 0x7c00>"


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


@pytest.mark.parametrize("kind", [Machine, pykvm.CPU])
def test_the_help_of_a_class_names_every_part(guest: Callable[..., Machine], kind: type) -> None:
    """Methods have a place of their own in it; what is only an attribute stands in its text."""
    machine = guest("F4   hlt")
    part = machine if kind is Machine else machine.vcpus[0]
    attributes = [name for name in vars(part) if not name.startswith("_")]
    assert {"memory"} < set(attributes)
    for name in attributes:
        assert re.search(rf"`(\w+\.)?{name}`", kind.__doc__ or ""), name
