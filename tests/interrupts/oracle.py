"""One real-mode guest, on the in-kernel irqchip and on the models, and what it read.

A program is a list of steps.  Each becomes a few instructions that access a register, write what
they read to a log, and end with an OUT at which the host may do its part: move an interrupt line.
DS reaches all 4 GiB, for the I/O APIC and the local APIC.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import pytest
from kvm.guest import CODE, Guest

from pykvm.bus import Bus, Space
from pykvm.devices import InterruptLine
from pykvm.errors import KVMError
from pykvm.kvm import ExitReason, System, uapi
from pykvm.kvm.constants import (
    KVM_EXIT_IO_OUT,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
)
from pykvm.kvm.reasons import PAYLOAD_OFFSET
from support.listing import assemble

IOAPIC = 0xFEC00000
LAPIC = 0xFEE00000
LAPIC_EOI = LAPIC + 0xB0
STEP_PORT, END_PORT = 0x80, 0xF4
STUBS, HANDLER, LOG, STACK = 0x400, 0xA00, 0xA000, 0xA000
GSIS = 24

READY = uapi.kvm_run.offset_of("ready_for_interrupt_injection")
IF_FLAG = uapi.kvm_run.offset_of("if_flag")

# An interrupt leaves its vector and a 1 in BX (its stub does), and lets no other in.
HANDLER_CODE = assemble("""
    55           push bp
    89 E5        mov bp, sp
    80 66 07 FD  and byte [bp+7], ~2        ; IF of the flags to return to
    5D           pop bp
    CF           iret
""")
STEP = assemble("""
    E6 80        out 0x80, al
""")
END = assemble("""
    E6 F4        out 0xf4, al
    F4           hlt
""")
TAKE = assemble("""
    31 DB        xor bx, bx
    FB           sti
    90           nop
    E6 80        out 0x80, al
    FA           cli
    89 D8        mov ax, bx
    AB           stosw
""")


class Step(NamedTuple):
    """Code of the guest's, what it logs, and what the host does when it has run."""

    text: str
    code: bytes
    logs: int = 0
    line: tuple[int, bool] | None = None

    def __repr__(self) -> str:
        return self.text


def out(port: int, value: int, size: int = 1) -> Step:
    code = struct.pack("<BHBHB", 0xB8, value, 0xBA, port, 0xEE if size == 1 else 0xEF)
    return Step(f"out({port:#x}, {value:#x}, {size})", code + STEP)


def in_(port: int, size: int = 1) -> Step:
    log = b"\xec\xaa" if size == 1 else b"\xed\xab"
    return Step(f"in_({port:#x}, {size})", struct.pack("<BH", 0xBA, port) + log + STEP, size)


def store(address: int, value: int, size: int = 4) -> Step:
    code = {
        1: struct.pack("<BBBBI", 0xB0, value & 0xFF, 0x67, 0xA2, address),
        2: struct.pack("<BHBBI", 0xB8, value & 0xFFFF, 0x67, 0xA3, address),
        4: struct.pack("<BBIBBBI", 0x66, 0xB8, value & 0xFFFFFFFF, 0x67, 0x66, 0xA3, address),
    }[size]
    return Step(f"store({address:#x}, {value:#x}, {size})", code + STEP)


def load(address: int, size: int = 4) -> Step:
    opcode, log = {1: ("67 A0", "AA"), 2: ("67 A1", "AB"), 4: ("67 66 A1", "66 AB")}[size]
    code = bytes.fromhex(opcode) + struct.pack("<I", address) + bytes.fromhex(log)
    return Step(f"load({address:#x}, {size})", code + STEP, size)


def line(gsi: int, level: bool) -> Step:
    return Step(f"line({gsi}, {level})", STEP, line=(gsi, level))


def take() -> Step:
    """Let one interrupt in; logs its vector and a 1, or two zeros."""
    return Step("take()", TAKE, 2)


class Runner:
    """A VM that runs programs, one after another."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._sregs = guest.vcpu.get_sregs()
        for segment in (self._sregs.cs, self._sregs.ds, self._sregs.es, self._sregs.ss):
            segment.base = segment.selector = 0
        self._sregs.ds.limit = 0xFFFFFFFF
        self._sregs.ds.g = 1
        for vector in range(256):
            at = STUBS + 6 * vector
            jump = HANDLER - at - 6
            guest.memory[at : at + 6] = struct.pack("<BBBBh", 0xBB, 1, vector, 0xE9, jump)
            guest.memory[4 * vector : 4 * vector + 4] = struct.pack("<HH", at, 0)
        guest.memory[HANDLER : HANDLER + len(HANDLER_CODE)] = HANDLER_CODE

    def run(self, steps: Sequence[Step]) -> list[int]:
        """What the steps that log something have logged."""
        code = b"".join(step.code for step in steps) + END
        assert CODE + len(code) < LOG, "the program is too long"
        memory = self.guest.memory
        memory[CODE : CODE + len(code)] = code
        self._complete()
        self.guest.vcpu.set_sregs(self._sregs)
        self.guest.vcpu.set_regs({"rip": CODE, "rflags": 2, "rsp": STACK, "rdi": LOG})
        self.reset()
        for step in steps:
            self._run_until(STEP_PORT)
            self.finish(step)
        self._run_until(END_PORT)
        values, at = [], LOG
        for step in steps:
            if step.logs:
                values.append(int.from_bytes(memory[at : at + step.logs], "little"))
                at += step.logs
        return values

    def _run_until(self, port: int) -> None:
        while True:
            reason, payload = self.guest.run()
            if reason is ExitReason.KVM_EXIT_IO and payload.port in (STEP_PORT, END_PORT):
                assert payload.port == port
                return
            self.answer(reason, payload)

    def _complete(self) -> None:
        """Let KVM finish the last access, lest it does so after the registers are set."""
        self.guest.set_page("immediate_exit", 1)
        with pytest.raises(KVMError, match="KVM_RUN"):
            self.guest.vcpu.run()
        self.guest.set_page("immediate_exit", 0)

    def reset(self) -> None:
        """Bring the interrupt controllers to their state at power-on."""

    def finish(self, step: Step) -> None:
        """Do the host's part of a step."""

    def answer(self, reason: ExitReason, payload: Any) -> None:
        """Answer an exit that is not the end of a step."""
        raise AssertionError(f"{reason}: {payload}")


class Kernel(Runner):
    """The oracle, its local APIC enabled, with ID 0 and logical ID 1."""

    # The slave first: what it requests until then would come up at the master again.
    CHIPS = (KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_IOAPIC)

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self._chips = [guest.vm.get_irqchip(chip) for chip in self.CHIPS]
        self._lapic = bytearray(guest.vcpu.get_lapic())
        struct.pack_into("<I", self._lapic, 0xF0, 0x1FF)
        struct.pack_into("<I", self._lapic, 0xD0, 1 << 24)
        self._asserted: set[int] = set()

    def run(self, steps: Sequence[Step], *, extint: bool = False) -> list[int]:
        """As `Runner.run`; with `extint`, LINT0 lets the interrupts of the PIC in."""
        struct.pack_into("<I", self._lapic, 0x350, 0x700 if extint else 0x10700)
        return super().run(steps)

    def reset(self) -> None:
        for gsi in self._asserted:
            self.guest.vm.irq_line(gsi, 0)
        self._asserted.clear()
        for chip in self._chips:
            self.guest.vm.set_irqchip(chip)
        self.guest.vcpu.set_lapic(self._lapic)

    def finish(self, step: Step) -> None:
        # As devices do, only when it changes.
        if step.line is not None and step.line[1] != (step.line[0] in self._asserted):
            gsi, level = step.line
            self.guest.vm.irq_line(gsi, int(level))
            self._asserted ^= {gsi}


class Board(Protocol):
    """Models, wired up."""

    def connect(self, bus: Bus) -> None:
        """Put them on the bus."""

    def line(self, gsi: int) -> InterruptLine:
        """The line from a device."""

    def take(self) -> int | None:
        """The vector that the processor takes now, if any."""


class Models(Runner):
    """A VM without interrupt controllers, whose exits a board of models answers."""

    def run(self, steps: Sequence[Step], board: Board | None = None) -> list[int]:
        """As `Runner.run`, on `board`, which must be at power-on."""
        assert board is not None
        self._board = board
        self._bus = Bus()
        board.connect(self._bus)
        self._lines = [board.line(gsi) for gsi in range(GSIS)]
        return super().run(steps)

    def finish(self, step: Step) -> None:
        if step.line is not None:
            gsi, level = step.line
            self._lines[gsi].set(level)
        page = self.guest.vcpu.run_page
        if page[READY] and page[IF_FLAG]:
            vector = self._board.take()
            if vector is not None:
                self.guest.vcpu.interrupt(vector)

    def answer(self, reason: ExitReason, payload: Any) -> None:
        page = self.guest.vcpu.run_page
        if reason is ExitReason.KVM_EXIT_IO:
            space, address, size = Space.PIO, payload.port, payload.size
            is_write, at = payload.direction == KVM_EXIT_IO_OUT, payload.data_offset
        elif reason is ExitReason.KVM_EXIT_MMIO:
            space, address, size = Space.MMIO, payload.phys_addr, payload.len
            is_write, at = bool(payload.is_write), PAYLOAD_OFFSET + 8
        else:
            raise AssertionError(f"{reason}: {payload}")
        if is_write:
            self._bus.write(space, address, size, int.from_bytes(page[at : at + size], "little"))
            return
        value = self._bus.read(space, address, size)
        assert value is not None, f"no device at {address:#x}"
        page[at : at + size] = value.to_bytes(size, "little")


@contextmanager
def runners() -> Iterator[tuple[Kernel, Models]]:
    """One VM of each kind."""
    with System() as system:
        chipped = system.create_vm()
        chipped.create_irqchip()
        with Guest(chipped) as kernel, Guest(system.create_vm()) as models:
            yield Kernel(kernel), Models(models)
