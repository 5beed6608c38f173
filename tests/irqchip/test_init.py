"""INIT, start-up IPIs and NMIs by the manual, with each irqchip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm import Machine, Outcome
from pykvm.interrupts import Message
from pykvm.x86.entry import real_mode
from support.guest import MakeGuest
from support.interrupts import platform_of
from support.irqchips import IRQCHIPS
from support.listing import assemble

if TYPE_CHECKING:
    from pykvm.interrupts.lapic import LocalApic

pytestmark = pytest.mark.kvm

INIT, NMI, STARTUP = 5, 4, 6

# SDM 3A table 10-1, columns "RESET" and "INIT": what the second processor finds in the registers
# that INIT sets, and in those that it leaves alone.
GENERAL = dict.fromkeys(("eax", "ebx", "ecx", "esi", "edi", "ebp", "esp"), 0)
SET = {**GENERAL, "eflags": 2, "cr2": 0, "cr3": 0, "cr4": 0, "efer": 0}
SET |= {"dr0": 0, "dr3": 0, "dr6": 0xFFFF0FF0, "dr7": 0x400}
CACHES_OFF, WRITE_THROUGH, CACHES_ON = 0x60000010, 0x40000010, 0x10
LEFT = (
    {"cr0": CACHES_OFF, "sysenter_cs": 0},
    {"cr0": CACHES_ON, "sysenter_cs": 0x5678},
    {"cr0": WRITE_THROUGH, "sysenter_cs": 0x5678},
)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_what_init_sets_and_what_it_leaves(guests: Path, irqchip: str) -> None:
    """And that it ends an NMI's handler: the guest gets another after each."""
    with Machine(guests / "init.elf", vcpus=2, irqchip=irqchip) as machine:
        leaves = machine.vcpus[0].kvm.get_cpuid2()
        signature = next(leaf.eax for leaf in leaves if leaf.function == 1)
        result = machine.run(timeout=30)
        starts = [
            {name: int(value, 16) for name, value in re.findall(r"(\w+)=(\w+)", line)}
            for line in machine.serial.text.splitlines()
        ]
    assert result.exit_code == 0, result
    # KVM has 0x600 where it resets a vCPU itself and was told no CPUID before that.
    assert {start.pop("edx") for start in starts} <= {signature, 0x600}
    assert starts == [{**SET, **left} for left in LEFT]


class Sender:
    """A device whose write number `at` sends messages to the second processor."""

    name = "sender"

    def __init__(self, *messages: Message, at: int = 1) -> None:
        self.messages = messages
        self.at = at
        self.writes = 0
        self.target: LocalApic | None = None

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes += 1
        if self.writes == self.at and self.target is not None:
            for message in self.messages:
                self.target.receive(message)


def message(mode: int, vector: int = 0) -> Message:
    return Message(1, False, mode, vector)


def second(guest: MakeGuest, sender: Sender, listing: str, started: str) -> Machine:
    """A machine whose second processor runs one listing, and after start-up at 0x8000 another."""
    machine = guest("EB FE        jmp $", vcpus=2)
    machine.add(sender, pio=0x700, length=1)
    machine.memory.write(0x7E00, assemble(listing))
    machine.memory.write(0x8000, assemble(started))
    sender.target = platform_of(machine).lapics[1]
    machine.vcpus[1].state = real_mode(ip=0x7E00)
    machine.vcpus[1].parked = False
    return machine


EXIT_9 = """
    B0 09        mov al, 9
    E6 F4        out 0xf4, al
    F4           hlt
"""


@pytest.mark.parametrize(
    "listing",
    [
        pytest.param("B9 00 10 BA 00 07 F3 6E F4    mov cx, 0x1000; mov dx, 0x700; rep outsb; hlt"),
        pytest.param("BA 00 07 EE EB FD    mov dx, 0x700; out dx, al; jmp $-1"),
    ],
    ids=["string", "out"],
)
def test_init_ends_the_instruction_at_hand(guest: MakeGuest, listing: str) -> None:
    """Nothing of it is left that would overwrite the registers of the start-up."""
    sender = Sender(message(INIT), message(STARTUP, 8), at=10)
    machine = second(guest, sender, listing, EXIT_9)

    assert machine.run(timeout=20).exit_code == 9
    assert sender.writes == 10


def test_an_nmi_before_init_is_gone_and_one_before_start_up_waits(guest: MakeGuest) -> None:
    """SDM 3A table 10-1 and 9.4.1; its handler counts in the word at 0x500."""
    sender = Sender(message(NMI), message(INIT), message(NMI), message(STARTUP, 8))
    machine = second(
        guest,
        sender,
        "BA 00 07 EE EB FE    mov dx, 0x700; out dx, al; jmp $",
        """
        BC 00 7C          mov sp, 0x7c00
        83 3E 00 05 00    cmp word [0x500], 0
        74 F9             je $-5
        A0 00 05          mov al, [0x500]
        E6 F4             out 0xf4, al
        """,
    )
    machine.memory.write(0x8800, assemble("FF 06 00 05 CF    inc word [0x500]; iret"))
    machine.memory.write_u32(4 * 2, 0x8800)

    assert machine.run(timeout=20).exit_code == 1


# It sends itself INIT by its local APIC in x2APIC mode.
SENDS_INIT = """
    66 B9 1B 00 00 00       mov ecx, 0x1b
    0F 32                   rdmsr
    66 0D 00 04 00 00       or eax, 0x400
    0F 30                   wrmsr
    66 B9 30 08 00 00       mov ecx, 0x830
    66 31 D2                xor edx, edx
    66 B8 00 45 00 00       mov eax, 0x4500
    0F 30                   wrmsr
    F4                      hlt
    EB FD                   jmp $-1
"""

# At F000:FFF0.  Begun for the first time, it sends itself INIT.
RESET_VECTOR = 0xFFF0
FIRMWARE = {
    RESET_VECTOR: "EA 00 E0 00 F0          jmp 0xf000:0xe000",
    0xE000: f"""
        31 C0                   xor ax, ax
        8E D8                   mov ds, ax
        FE 06 00 05             inc byte [0x500]
        80 3E 00 05 01          cmp byte [0x500], 1
        75 24                   jne +36
        {SENDS_INIT}
        A0 00 05                mov al, [0x500]
        E6 F4                   out 0xf4, al
    """,
}


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_first_processor_begins_anew_in_its_firmware(irqchip: str) -> None:
    image = bytearray(b"\xf4" * 0x10000)
    for at, listing in FIRMWARE.items():
        code = assemble(listing)
        image[at : at + len(code)] = code
    with Machine(bytes(image), boot="firmware", irqchip=irqchip, memory="1M") as machine:
        result = machine.run(timeout=20)
    assert result.exit_code == 2, result


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_without_firmware_it_is_a_reset(guest: MakeGuest, irqchip: str) -> None:
    result = guest(SENDS_INIT, irqchip=irqchip).run(timeout=20)
    assert result.outcome is Outcome.RESET
    assert result.sentence == "the guest sent INIT to its first vCPU"
