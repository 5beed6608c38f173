"""What others' snapshots got wrong, as far as no other test tries it (docs/snapshots.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pykvm import Machine, Snapshot
from pykvm.exits import IoOut
from pykvm.kvm import uapi
from support.guest import MakeGuest
from support.host import HostCannot
from support.interrupts import COUNT, VECTOR, count, put_handler, with_deadline

pytestmark = pytest.mark.kvm

IRQCHIPS = ("user", "kernel", "split")

Ways = Callable[[Machine, Snapshot], Iterator[Machine]]


@pytest.fixture
def ways(tmp_path: Path) -> Iterator[Ways]:
    """The machine after a reset, a fork, and one from a file."""
    with ExitStack() as stack:

        def each(machine: Machine, saved: Snapshot) -> Iterator[Machine]:
            machine.reset(saved)
            yield machine
            yield stack.enter_context(saved.fork())
            saved.save(tmp_path / "a.pykvm")
            yield stack.enter_context(Machine.from_snapshot(tmp_path / "a.pykvm"))

        yield each


def to_exit(machine: Machine, port: int) -> Snapshot:
    """A snapshot at the guest's next write to that port."""
    for exit in machine.exits(timeout=60):
        if isinstance(exit, IoOut) and exit.port == port:
            return machine.snapshot()
    raise AssertionError("the guest has ended")


# Has its local APIC's timer interrupt 2^24 ticks of the TSC from now, says so, and waits for it.
DEADLINE = f"""
    66 B9 1B 00 00 00         mov ecx, 0x1b       ; IA32_APIC_BASE: x2APIC mode
    0F 32                     rdmsr
    66 0D 00 0C 00 00         or eax, 0xc00
    0F 30                     wrmsr
    66 31 D2                  xor edx, edx
    66 B9 0F 08 00 00         mov ecx, 0x80f      ; spurious interrupts: enable
    66 B8 FF 01 00 00         mov eax, 0x1ff
    0F 30                     wrmsr
    66 B9 32 08 00 00         mov ecx, 0x832      ; LVT timer: TSC deadline
    66 B8 {VECTOR:02X} 00 04 00         mov eax, 0x400{VECTOR:02x}
    0F 30                     wrmsr
    0F 31                     rdtsc
    66 05 00 00 00 01         add eax, 0x1000000
    66 83 D2 00               adc edx, 0
    66 B9 E0 06 00 00         mov ecx, 0x6e0      ; IA32_TSC_DEADLINE
    0F 30                     wrmsr
    E6 80                     out 0x80, al
    FB                        sti
    F4                        hlt
    B0 03                     mov al, 3
    E6 F4                     out 0xf4, al
"""


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_tsc_deadline_fires_in_each_way(guest: MakeGuest, ways: Ways, irqchip: str) -> None:
    """Others' do not: firecracker#4099, #4666, kata-containers#13798."""
    model = "+tsc_deadline_timer,+x2apic" if irqchip == "user" else with_deadline(irqchip)
    if model == "baseline":
        raise HostCannot("KVM_CAP_TSC_DEADLINE_TIMER", "no local APIC of KVM's has it here")
    machine = guest(DEADLINE, irqchip=irqchip, cpu=model)
    put_handler(machine, COUNT)
    saved = to_exit(machine, 0x80)
    for _ in range(2):
        for other in ways(machine, saved):
            assert other.run(timeout=60).exit_code == 3
            assert count(other) == 1


# Prints the text at 0x900, each byte of it when the serial port says that it has sent the last.
PRINT = """
    B0 11 E6 20              mov al, 0x11 ; out 0x20, al
    B0 40 E6 21              mov al, 0x40 ; out 0x21, al
    B0 04 E6 21              mov al, 4    ; out 0x21, al
    B0 01 E6 21              mov al, 1    ; out 0x21, al
    B0 EF E6 21              mov al, 0xef ; out 0x21, al
    BE 00 09                 mov si, 0x900
    BA FC 03 B0 08 EE        mov dx, 0x3fc ; mov al, 8 ; out dx, al
    BA F9 03 B0 02 EE        mov dx, 0x3f9 ; mov al, 2 ; out dx, al
    FB                       sti
    F4                       hlt
    EB FC                    jmp $-2
"""
SENT = """
    BA FA 03 EC              mov dx, 0x3fa ; in al, dx
    AC                       lodsb
    84 C0                    test al, al
    74 09                    jz $+11
    BA F8 03 EE              mov dx, 0x3f8 ; out dx, al
    B0 20 E6 20              mov al, 0x20 ; out 0x20, al
    CF                       iret
    E6 F4                    out 0xf4, al
"""
TEXT = "sent by interrupts"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_uart_in_the_middle_of_sending_goes_on(
    guest: MakeGuest, ways: Ways, irqchip: str
) -> None:
    """Others' is dead: firecracker#2879, #5730, fcvm#708."""
    machine = guest(PRINT, irqchip=irqchip)
    machine.memory.write(0x900, TEXT.encode() + b"\0")
    put_handler(machine, SENT, vector=0x44)
    start = machine.snapshot()
    assert machine.run(timeout=60).exit_code == 0
    assert machine.serial.text == TEXT
    machine.reset(start)
    for number in range(len(TEXT)):
        saved = to_exit(machine, 0x3F8)
        assert machine.serial.text == TEXT[: number + 1]
        for other in ways(machine, saved):
            assert other.run(timeout=60).exit_code == 0
            assert other.serial.text == TEXT
        machine.reset(saved)


def test_what_listens_to_a_port_hears_what_comes_after(guest: MakeGuest) -> None:
    """Sockets, files and terminals do so: others' are left without a word (CH#7759, fcvm#797)."""
    machine = guest(PRINT)
    machine.memory.write(0x900, TEXT.encode() + b"\0")
    put_handler(machine, SENT, vector=0x44)
    heard = bytearray()
    machine.serial.on_output(heard.extend)
    saved = to_exit(machine, 0x3F8)
    assert heard == b"s"
    for _ in range(2):
        machine.reset(saved)
        del heard[:]
        assert machine.run(timeout=60).exit_code == 0
        assert heard == TEXT[1:].encode()
    with saved.fork() as twin:
        del heard[:]
        twin.run(timeout=60)
        assert (twin.serial.text, bytes(heard)) == (TEXT, b"")


def test_no_cpuid_is_set_once_a_vcpu_has_run(
    guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM refuses that since Linux 5.16: CH#4156."""
    machine = guest(PRINT)
    machine.memory.write(0x900, TEXT.encode() + b"\0")
    put_handler(machine, SENT, vector=0x44)
    saved = to_exit(machine, 0x3F8)
    kind, asked = type(machine.vcpus[0].kvm), []
    ioctl = kind.ioctl

    def noted(handle: Any, request: int, *arguments: Any) -> int:
        asked.append(request)
        return ioctl(handle, request, *arguments)

    monkeypatch.setattr(kind, "ioctl", noted)
    machine.reset(saved)
    assert machine.run(timeout=60).exit_code == 0
    assert asked
    assert uapi.KVM_SET_CPUID2 not in asked
