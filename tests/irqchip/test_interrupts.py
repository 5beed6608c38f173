"""Interrupts on a real vCPU: when they are taken, and what a halted guest waits for."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pykvm import Machine, Mode, Outcome
from pykvm.bus import Space
from pykvm.exits import Hlt, IoOut
from pykvm.x86.descriptors import idt, interrupt_gate
from pykvm.x86.state import TableRegister
from support.guest import MakeGuest
from support.interrupts import COUNT, END, VECTOR, count, listen, platform_of, poke, put_handler
from support.listing import assemble
from support.slowness import longer

pytestmark = pytest.mark.kvm

LAPIC = 0xFEE00000
LVT_TIMER = LAPIC + 0x320
LVT_LINT1 = LAPIC + 0x360
INITIAL_COUNT = LAPIC + 0x380
DIVIDE = LAPIC + 0x3E0
NMI = 4 << 8

# Sleeps until an interrupt was handled, then ends with 0.
SLEEP = """
    FB                       sti
    F4                       hlt
    80 3E 00 05 00           cmp byte [0x500], 0
    74 F7                    je $-7
    B0 00                    mov al, 0
    E6 F4                    out 0xf4, al
"""
EXIT_0 = """
    B0 00                    mov al, 0
    E6 F4                    out 0xf4, al
"""
HALT = "FA F4                    cli; hlt" + EXIT_0
HALT_WITH_INTERRUPTS = "FB F4                    sti; hlt" + EXIT_0
SPIN = "FB EB FE                 sti; jmp $"
# Interrupts itself as soon as interrupts are on.
SEND = """
    FA                       cli
    66 B9 3F 08 00 00        mov ecx, 0x83f             ; x2APIC: self IPI
    66 B8 41 00 00 00        mov eax, 0x41
    0F 30                    wrmsr
"""
# Ends with how many were handled.
EXIT_COUNT = """
    A0 00 05                 mov al, [0x500]
    E6 F4                    out 0xf4, al
"""


# The handler of vector 13, #GP: ends with 13.
FAULT = """
    B0 0D                    mov al, 13
    E6 F4                    out 0xf4, al
"""


def dword(value: int) -> str:
    """The lower 32 bits as a listing has them."""
    return (value & 0xFFFF_FFFF).to_bytes(4, "little").hex(" ")


def start_timer(machine: Machine, nanoseconds: int) -> None:
    """The local APIC's, once."""
    poke(machine, DIVIDE, 0xB)
    poke(machine, LVT_TIMER, VECTOR)
    poke(machine, INITIAL_COUNT, nanoseconds)


def later(seconds: float, function: Any, *args: object) -> threading.Timer:
    timer = threading.Timer(seconds, function, args)
    timer.start()
    return timer


class TestHalting:
    def test_it_waits_without_burning_cpu(self, guest: MakeGuest) -> None:
        machine = guest(SLEEP)
        listen(machine)
        start_timer(machine, 1_000_000_000)
        wall, cpu = time.monotonic(), time.process_time()
        result = machine.run(timeout=30)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        assert result.exit_code == 0
        assert count(machine) == 1
        assert wall > 0.9
        assert cpu < wall / 4

    def test_it_goes_on_sleeping_in_the_next_run_and_is_woken_there(self, guest: MakeGuest) -> None:
        machine = guest("""
            FB           sti
            F4           hlt
            FF 06 10 05  inc word [0x510]
            EB F9        jmp $-5
        """)
        listen(machine)
        machine.line(1)  # nothing comes, but it might
        for _ in range(2):
            assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
            assert machine.memory.read_u16(0x510) == 0
        start_timer(machine, 1_000_000)
        machine.run(timeout=30, until=lambda machine: machine.memory.read_u16(0x510)).check()
        assert (machine.memory.read_u16(0x510), count(machine)) == (1, 1)
        assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
        assert (machine.memory.read_u16(0x510), count(machine)) == (1, 1)

    def test_interrupts_off(self, guest: MakeGuest) -> None:
        """A timer does not wake a vCPU whose interrupts are off."""
        machine = guest(HALT)
        listen(machine)
        start_timer(machine, 10_000_000)
        result = machine.run(timeout=30)
        assert result.outcome is Outcome.HALTED
        assert "nothing to wake it" in str(result)
        assert result.seconds < 20

    def test_interrupts_on_and_nothing_armed(self, guest: MakeGuest) -> None:
        machine = guest(HALT_WITH_INTERRUPTS)
        listen(machine)
        assert machine.run(timeout=30).outcome is Outcome.HALTED

    def test_nothing_ever_touched(self, guest: MakeGuest) -> None:
        assert guest(HALT_WITH_INTERRUPTS).run(timeout=30).outcome is Outcome.HALTED

    def test_no_controllers_at_all(self, guest: MakeGuest) -> None:
        machine = guest(HALT_WITH_INTERRUPTS, irqchip="none")
        assert machine.run(timeout=30).outcome is Outcome.HALTED
        assert "lapic" not in machine.devices

    def test_a_timer_that_is_masked(self, guest: MakeGuest) -> None:
        machine = guest(HALT_WITH_INTERRUPTS)
        listen(machine)
        start_timer(machine, 10_000_000)
        poke(machine, LVT_TIMER, 0x10000 | VECTOR)
        assert machine.run(timeout=30).outcome is Outcome.HALTED

    def test_the_timeout_counts_while_it_waits(self, guest: MakeGuest) -> None:
        machine = guest(SLEEP)
        listen(machine)
        start_timer(machine, 4_000_000_000)
        result = machine.run(timeout=0.1)
        assert result.outcome is Outcome.TIMEOUT
        assert result.seconds < 3

    def test_stop_while_it_waits_and_going_on(self, guest: MakeGuest) -> None:
        machine = guest(SLEEP)
        listen(machine)
        start_timer(machine, 500_000_000)
        timer = later(0.1, machine.stop)
        assert machine.run(timeout=30).outcome is Outcome.STOPPED
        timer.join()
        assert machine.run(timeout=30).exit_code == 0
        assert count(machine) == 1

    def test_until_is_looked_at_while_it_waits(self, guest: MakeGuest) -> None:
        machine = guest(SLEEP)
        listen(machine)
        start_timer(machine, 200_000_000)
        result = machine.run(timeout=30, until=lambda machine: count(machine) == 1)
        assert result.outcome in (Outcome.UNTIL, Outcome.EXITED)

    def test_on_exit_sees_every_halt(self, guest: MakeGuest) -> None:
        machine = guest(SLEEP)
        listen(machine)
        start_timer(machine, 10_000_000)
        seen: list[object] = []
        machine.run(timeout=30, on_exit=lambda cpu, exit: seen.append(exit))
        assert seen.count(Hlt()) == 1
        assert isinstance(seen[-1], IoOut)


class TestWhenItIsTaken:
    def test_the_shadow_of_sti(self, guest: MakeGuest) -> None:
        """STI; HLT: one that waits comes after the HLT, or the guest would sleep for ever."""
        machine = guest("""
            B9 32 00                 mov cx, 50
            51                       push cx
            FA                       cli
            66 B9 3F 08 00 00        mov ecx, 0x83f             ; x2APIC: self IPI
            66 B8 41 00 00 00        mov eax, 0x41
            0F 30                    wrmsr
            59                       pop cx
            FB                       sti
            F4                       hlt
            E2 EB                    loop $-19
            A0 00 05                 mov al, [0x500]
            E6 F4                    out 0xf4, al
        """)
        listen(machine, END, x2apic=True)
        assert machine.run(timeout=30).exit_code == 50

    def test_not_while_interrupts_are_off(self, guest: MakeGuest) -> None:
        machine = guest(
            SEND
            + """
            B9 D0 07                 mov cx, 2000
            E2 FE                    loop $
            A1 00 05                 mov ax, [0x500]
            A3 02 05                 mov [0x502], ax
            FB                       sti
            80 3E 00 05 00           cmp byte [0x500], 0
            74 F9                    je $-5
        """
            + EXIT_COUNT
        )
        listen(machine, END, x2apic=True)
        assert machine.run(timeout=30).exit_code == 1
        assert machine.memory.read_u16(0x502) == 0

    def test_between_exits_that_come_close(self, guest: MakeGuest) -> None:
        """A guest that never runs long enough for the window to be an exit of its own."""
        machine = guest(
            SEND
            + """
            FB                       sti
            B9 C8 00                 mov cx, 200
            E4 80                    in al, 0x80
            80 3E 00 05 00           cmp byte [0x500], 0
            E1 F7                    loope $-7
            FA                       cli
        """
            + EXIT_COUNT
        )
        listen(machine, END, x2apic=True)
        assert machine.run(timeout=30).exit_code == 1

    def test_an_nmi_with_interrupts_off(self, guest: MakeGuest) -> None:
        machine = guest("""
            FA                       cli
            66 B9 30 08 00 00        mov ecx, 0x830             ; x2APIC: ICR
            66 B8 00 04 00 00        mov eax, 0x400             ; an NMI to APIC 0
            66 31 D2                 xor edx, edx
            0F 30                    wrmsr
            80 3E 00 05 00           cmp byte [0x500], 0
            74 F9                    je $-5
            A0 00 05                 mov al, [0x500]
            E6 F4                    out 0xf4, al
        """)
        listen(machine, COUNT, vector=2, x2apic=True)
        assert machine.run(timeout=30).exit_code == 1

    def test_an_nmi_pin_wakes_who_halted_with_interrupts_off(self, guest: MakeGuest) -> None:
        machine = guest(HALT)
        platform = listen(machine, COUNT, vector=2)
        poke(machine, LVT_LINT1, NMI)
        # Something that could drive the pin has to be there, or the guest would be given up.
        start_timer(machine, 4_000_000_000)
        timer = later(0.1, platform.lapics[0].set_lint, 1, True)
        result = machine.run(timeout=30)
        timer.join()
        assert result.exit_code == 0
        assert count(machine) == 1
        assert result.seconds < 3

    def test_an_interrupt_that_waits_for_a_lower_cr8(self, guest: MakeGuest) -> None:
        machine = guest(
            """
            B8 04 00 00 00           mov eax, 4
            44 0F 22 C0              mov cr8, rax
            B9 3F 08 00 00           mov ecx, 0x83f             ; x2APIC: self IPI
            B8 41 00 00 00           mov eax, 0x41
            31 D2                    xor edx, edx
            0F 30                    wrmsr
            FB                       sti
            B9 D0 07 00 00           mov ecx, 2000
            E2 FE                    loop $
            C6 04 25 00 05 00 00 01  mov byte [0x500], 1
            B8 03 00 00 00           mov eax, 3
            44 0F 22 C0              mov cr8, rax
            F3 90                    pause
            EB FC                    jmp $-2
            """,
            mode=Mode.LONG,
            load_address=0x10000,
        )
        handler = assemble("""
            8A 04 25 00 05 00 00     mov al, [0x500]
            E6 F4                    out 0xf4, al
        """)
        listen(machine, x2apic=True)
        machine.memory.write(0x9000, handler)
        state = machine.vcpus[0].state
        gates = {VECTOR: interrupt_gate(state.cs.selector, 0x9000)}
        machine.memory.write(0x8000, idt(gates))
        state.idt = TableRegister(base=0x8000, limit=0xFFF)
        machine.vcpus[0].state = state
        assert machine.run(timeout=30).exit_code == 1

    def test_a_guest_that_never_exits_is_interrupted(self, guest: MakeGuest) -> None:
        machine = guest("""
            FB                       sti
            80 3E 00 05 00           cmp byte [0x500], 0
            74 F9                    je $-5
            B0 00                    mov al, 0
            E6 F4                    out 0xf4, al
        """)
        listen(machine)
        start_timer(machine, 50_000_000)
        assert machine.run(timeout=30).exit_code == 0


class TestX2Apic:
    def test_switching_to_it_an_ipi_and_its_end(self, guest: MakeGuest) -> None:
        machine = guest("""
            66 B9 1B 00 00 00        mov ecx, 0x1b              ; IA32_APIC_BASE
            0F 32                    rdmsr
            80 CC 0C                 or ah, 0x0c                ; EN, EXTD
            0F 30                    wrmsr
            66 B9 0F 08 00 00        mov ecx, 0x80f             ; spurious vector
            66 B8 FF 01 00 00        mov eax, 0x1ff
            66 31 D2                 xor edx, edx
            0F 30                    wrmsr
            66 B9 30 08 00 00        mov ecx, 0x830             ; ICR: 0x41 to APIC 0
            66 B8 41 00 00 00        mov eax, 0x41
            0F 30                    wrmsr
            FB                       sti
            F4                       hlt
            66 B9 3F 08 00 00        mov ecx, 0x83f             ; self IPI
            66 B8 41 00 00 00        mov eax, 0x41
            FA                       cli
            0F 30                    wrmsr
            FB                       sti
            F4                       hlt
            66 B9 03 08 00 00        mov ecx, 0x803             ; version
            0F 32                    rdmsr
            A3 10 05                 mov [0x510], ax
            A0 00 05                 mov al, [0x500]
            E6 F4                    out 0xf4, al
        """)
        platform = platform_of(machine)
        put_handler(machine, END)
        assert machine.run(timeout=30).exit_code == 2
        lapic = platform.lapics[0]
        assert lapic.x2apic
        assert machine.memory.read_u16(0x510) & 0xFF == lapic.version & 0xFF
        assert [lapic.read_msr(0x810 + part) for part in range(8)] == [0] * 8, "ISR"
        assert machine.vcpus[0].regs.apic_base & 0xC00 == 0xC00

    @pytest.mark.parametrize(
        ("index", "value"),
        [
            (0x808, 1 << 8),  # TPR, a reserved bit
            (0x80B, 1),  # EOI is 0
            (0x802, 0),  # ID is read-only
            (0x8FF, 0),  # nothing there
            (0x1B, 0xFEE00800),  # back to xAPIC mode
        ],
    )
    def test_what_is_not_allowed_is_a_fault(self, guest: MakeGuest, index: int, value: int) -> None:
        machine = guest(f"""
            66 B9 {dword(index)}     mov ecx, index
            66 B8 {dword(value)}     mov eax, value
            66 31 D2                 xor edx, edx
            0F 30                    wrmsr
            B0 63                    mov al, 99
            E6 F4                    out 0xf4, al
        """)
        listen(machine, FAULT, vector=13, x2apic=True)
        assert machine.run(timeout=30).exit_code == 13


def write_apic_base(value: int) -> str:
    return f"""
        66 B9 1B 00 00 00        mov ecx, 0x1b
        66 B8 {dword(value)}     mov eax, value
        66 BA {dword(value >> 32)}  mov edx, value >> 32
        0F 30                    wrmsr
    """


class TestApicBase:
    def test_the_page_moves(self, guest: MakeGuest) -> None:
        machine = guest(
            write_apic_base(0xFED40900)
            + """
            67 66 A1 30 00 D4 FE     mov eax, [0xfed40030]
            A3 10 05                 mov [0x510], ax
            B0 00                    mov al, 0
            E6 F4                    out 0xf4, al
        """
        )
        state = machine.vcpus[0].state
        state.ds.limit, state.ds.g = 0xFFFF_FFFF, 1
        machine.vcpus[0].state = state
        platform = listen(machine)
        assert machine.run(timeout=30).exit_code == 0
        assert machine.memory.read_u16(0x510) == platform.lapics[0].version & 0xFFFF
        assert machine.bus.find(Space.MMIO, LAPIC) is None
        found = machine.bus.find(Space.MMIO, 0xFED40000)
        assert found is not None
        assert found.name == "lapic"

    def test_disabled_it_is_gone_and_comes_back(self, guest: MakeGuest) -> None:
        machine = guest(
            write_apic_base(0xFEE00100) + "F4  hlt" + write_apic_base(0xFEE00900) + EXIT_0
        )
        platform = listen(machine)
        assert machine.run(timeout=30).outcome is Outcome.HALTED
        enabled, page = [platform.lapics[0].enabled], [machine.bus.find(Space.MMIO, LAPIC)]
        assert machine.run(timeout=30).exit_code == 0
        enabled.append(platform.lapics[0].enabled)
        page.append(machine.bus.find(Space.MMIO, LAPIC))
        assert enabled == [False, True]
        assert [range_ is not None for range_ in page] == [False, True]

    @pytest.mark.parametrize(
        "value",
        [
            0xFEC00900,  # where the I/O APIC is
            0xFED00900,  # the HPET
            0x00000900,  # RAM
            0xFFFFF900,
            1 << 40 | 0x900,
            (1 << 52) - 0x1000 | 0x900,
        ],
        ids=hex,
    )
    def test_wherever_the_guest_moves_it_the_machine_lives(
        self, guest: MakeGuest, value: int
    ) -> None:
        machine = guest(write_apic_base(value) + write_apic_base(0xFEE00900) + EXIT_0)
        listen(machine, FAULT, vector=13)
        assert machine.run(timeout=30).exit_code in (0, 13)


class TestStorms:
    @pytest.mark.parametrize("where", ["8259", "io-apic"])
    def test_a_line_that_never_falls(self, guest: MakeGuest, where: str) -> None:
        """The handler is called again and again; the host goes on, and can stop it."""
        machine = guest(SPIN)
        if where == "8259":
            platform = listen(machine, vector=0x25)
            for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 3), (0x4D0, 0x20)):
                poke(machine, port, value, 1)
        else:
            platform = listen(machine, END, x2apic=True)
            poke(machine, 0xFEC00000, 0x10 + 2 * 5)
            poke(machine, 0xFEC00010, 0x8000 | VECTOR)
        platform.line(5).set(True)
        stopped = []

        def stop() -> None:
            stopped.append(time.monotonic())
            machine.stop()

        timer = later(0.3, stop)
        result = machine.run(timeout=30)
        took = time.monotonic() - stopped[0]
        timer.join()
        assert result.outcome is Outcome.STOPPED
        assert took < 5
        assert count(machine) > 10

    def test_edges_without_end_from_another_thread(self, guest: MakeGuest) -> None:
        machine = guest(SPIN)
        platform = listen(machine, END, x2apic=True)
        poke(machine, 0xFEC00000, 0x10 + 2 * 5)
        poke(machine, 0xFEC00010, VECTOR)
        line = platform.line(5)
        over = threading.Event()

        def storm() -> None:
            while not over.is_set():
                line.set(True)
                line.set(False)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            # However busy the host: some are taken, and then it can still be stopped.
            result = machine.run(timeout=60, until=lambda machine: count(machine) > 10)
            assert result.outcome is Outcome.UNTIL
            timer = later(0.2, machine.stop)
            assert machine.run(timeout=30).outcome is Outcome.STOPPED
        finally:
            over.set()
            thread.join()
        timer.join()

    def test_a_timer_with_the_shortest_period(self, guest: MakeGuest) -> None:
        machine = guest(SPIN)
        listen(machine, END, x2apic=True)
        lapic = platform_of(machine).lapics[0]
        lapic.write_msr(0x83E, 0xB)
        lapic.write_msr(0x832, 0x20000 | VECTOR)
        lapic.write_msr(0x838, 1)
        # However busy the host, see above.
        result = machine.run(timeout=longer(10), until=lambda machine: count(machine) > 10)
        assert result.outcome is Outcome.UNTIL
        timer = later(0.1, machine.stop)
        assert machine.run(timeout=longer(10)).outcome is Outcome.STOPPED
        timer.join()


SERIAL = """
    50                       push ax
    52                       push dx
    BA F8 03                 mov dx, 0x3f8
    EC                       in al, dx
    A2 01 05                 mov [0x501], al
    FE 06 00 05              inc byte [0x500]
    5A                       pop dx
    58                       pop ax
    CF                       iret
"""


@pytest.mark.parametrize("where", ["8259", "io-apic"])
def test_input_from_another_thread_wakes_a_halted_guest(guest: MakeGuest, where: str) -> None:
    machine = guest(SLEEP)
    if where == "8259":
        listen(machine, SERIAL, vector=0x24)
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)):
            poke(machine, port, value, 1)
    else:
        listen(machine, SERIAL)
        poke(machine, 0xFEC00000, 0x10 + 2 * 4)
        poke(machine, 0xFEC00010, VECTOR)
    poke(machine, 0x3FC, 0x08, 1)
    poke(machine, 0x3F9, 0x01, 1)
    timer = later(0.2, machine.serial.send, "x")
    result = machine.run(timeout=30)
    timer.join()
    assert result.exit_code == 0
    assert machine.memory.read(0x500, 2) == b"\x01x"


def test_exits_by_hand_are_as_without_interrupts(guest: MakeGuest) -> None:
    machine = guest(SLEEP)
    listen(machine)
    start_timer(machine, 1)
    time.sleep(0.01)
    for exit in machine.vcpus[0].raw_exits():
        assert exit == Hlt()
        break
    assert count(machine) == 0
    assert machine.run(timeout=30).exit_code == 0, "and a run takes what waits"
