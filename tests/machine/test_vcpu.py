"""Registers, virtual memory and exits by hand, on a real vCPU."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from pykvm import ClosedError, ConfigError, Machine, Mode, Outcome, StateError, TranslationError
from pykvm.bus import Placement, Space
from pykvm.exits import Hlt, IoIn, IoOut, MmioRead, MmioWrite, Shutdown
from pykvm.x86 import state as x86
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

ADD = """
    E4 10        in al, 0x10
    04 01        add al, 1
    E6 11        out 0x11, al
    F4           hlt
    EB F7        jmp $-7
"""


def test_exits_by_hand(guest: MakeGuest) -> None:
    machine = guest(ADD)
    seen = []
    for exit in machine.vcpus[0].raw_exits():
        seen.append(exit)
        match exit:
            case IoIn(port=0x10):
                exit.answer(41)
            case Hlt():
                break
    assert seen == [IoIn(port=0x10, size=1), IoOut(port=0x11, size=1, data=b"*"), Hlt()]


def test_an_unanswered_read_floats(guest: MakeGuest) -> None:
    machine = guest(ADD)
    exits = machine.vcpus[0].raw_exits()
    next(exits)
    assert next(exits) == IoOut(port=0x11, size=1, data=b"\0")


def test_an_exit_is_answered_before_the_next(guest: MakeGuest) -> None:
    exits = guest(ADD).vcpus[0].raw_exits()
    read = next(exits)
    next(exits)
    assert isinstance(read, IoIn)
    with pytest.raises(StateError, match="is over"):
        read.answer(1)


@pytest.mark.parametrize("value", [256, -1, b"", b"12"])
def test_an_answer_that_does_not_fit(guest: MakeGuest, value: int | bytes) -> None:
    read = next(guest(ADD).vcpus[0].raw_exits())
    assert isinstance(read, IoIn)
    with pytest.raises(ConfigError, match="port 0x10"):
        read.answer(value)


def test_mmio_by_hand(guest: MakeGuest) -> None:
    machine = guest(
        """
        A1 04 00 00 D0         mov eax, [0xd0000004]
        40                     inc eax
        A3 08 00 00 D0         mov [0xd0000008], eax
        F4                     hlt
        """,
        mode=Mode.PROTECTED,
    )
    seen = []
    for exit in machine.vcpus[0].raw_exits():
        seen.append(exit)
        if isinstance(exit, MmioRead):
            exit.answer(0x1234)
        if isinstance(exit, Hlt):
            break
    assert seen == [
        MmioRead(address=0xD0000004, size=4),
        MmioWrite(address=0xD0000008, data=b"\x35\x12\0\0"),
        Hlt(),
    ]


def test_string_input_is_one_exit_or_many_but_all_of_it(guest: MakeGuest) -> None:
    machine = guest("""
        BF 00 10     mov di, 0x1000
        B9 10 00     mov cx, 16
        BA 10 00     mov dx, 0x10
        F3 6C        rep insb
        F4           hlt
    """)
    sent = 0
    for exit in machine.vcpus[0].raw_exits():
        if not isinstance(exit, IoIn):
            break
        exit.answer(bytes(range(sent, sent + exit.count)))
        sent += exit.count
    assert sent == 16
    assert machine.memory.read(0x1000, 16) == bytes(range(16))


def test_a_triple_fault_by_hand(guest: MakeGuest) -> None:
    machine = guest(
        """
        0F 01 1D 09 7C 00 00   lidt [0x7c09]
        0F 0B                  ud2
        00 00 00 00 00 00
        """,
        mode=Mode.PROTECTED,
    )
    assert next(machine.vcpus[0].raw_exits()) == Shutdown()


def test_devices_answer_what_is_handed_to_them(guest: MakeGuest) -> None:
    machine = guest("""
        BA FD 03     mov dx, 0x3fd
        EC           in al, dx
        E6 99        out 0x99, al
        F4           hlt
    """)
    exits = machine.vcpus[0].raw_exits()
    assert machine.handle(next(exits)) is True
    written = next(exits)
    assert written == IoOut(port=0x99, size=1, data=b"\x60")
    assert machine.handle(written) is False
    assert machine.handle(next(exits)) is False


def test_a_loop_left_by_an_exception_does_not_hold_the_vcpu(guest: MakeGuest) -> None:
    machine = guest(ADD, unclaimed="float")
    with pytest.raises(ZeroDivisionError) as caught:
        for _ in machine.vcpus[0].raw_exits():
            _ = 1 // 0
    # The traceback keeps the loop alive, and still:
    assert machine.run(timeout=10).outcome is Outcome.HALTED
    assert caught is not None


def test_a_loop_that_was_taken_over_says_so(guest: MakeGuest) -> None:
    machine = guest(ADD)
    first = machine.vcpus[0].raw_exits()
    next(first)
    second = machine.vcpus[0].raw_exits()
    next(second)
    with pytest.raises(StateError, match="taken this vCPU over"):
        next(first)


def test_loops_taken_over_leave_the_threads_signals_as_they_were(guest: MakeGuest) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    machine = guest(ADD)
    loops = [machine.vcpus[0].raw_exits() for _ in range(3)]
    for loop in loops:
        next(loop)
    del loop, loops
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_closing_ends_a_loop_in_another_thread(guest: MakeGuest) -> None:
    """Whether it spins in the guest or is between two exits: ClosedError, and no crash."""
    for code in ("FA EB FE  cli; jmp $", "E6 10 EB FC  out 0x10, al; jmp $-2"):
        for _ in range(20):
            machine = guest(code)
            ended: list[BaseException] = []

            def loop(machine: Machine = machine, ended: list[BaseException] = ended) -> None:
                try:
                    for _ in machine.vcpus[0].raw_exits(timeout=30):
                        pass
                except ClosedError as error:
                    ended.append(error)

            thread = threading.Thread(target=loop)
            thread.start()
            while not machine.vcpus[0].kick():
                pass
            machine.close()
            thread.join(20)
            assert len(ended) == 1


def test_closing_at_any_moment_of_a_loop_in_another_thread(guest: MakeGuest) -> None:
    """Also while the loop is only being set up; threads change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for delay in range(0, 4000, 40):
            machine = guest("E6 10 EB FC  out 0x10, al; jmp $-2")
            ended: list[BaseException] = []

            def loop(machine: Machine = machine, ended: list[BaseException] = ended) -> None:
                try:
                    for _ in machine.vcpus[0].raw_exits(timeout=30):
                        pass
                except ClosedError as error:
                    ended.append(error)

            thread = threading.Thread(target=loop)
            thread.start()
            for _ in range(delay):
                pass
            machine.close()
            thread.join(20)
            assert len(ended) == 1
    finally:
        sys.setswitchinterval(interval)


def test_a_loop_over_a_machine_that_was_closed(guest: MakeGuest) -> None:
    machine = guest(ADD)
    exits = machine.vcpus[0].raw_exits()
    read = next(exits)
    machine.close()
    assert isinstance(read, IoIn)
    with pytest.raises(StateError, match="is over"):
        read.answer(1)
    with pytest.raises(ClosedError):
        next(exits)
    assert machine.vcpus[0].kick() is False


def test_a_running_machine_is_not_taken_over(guest: MakeGuest) -> None:
    machine = guest(ADD)

    class Device:
        name = "device"

        def read(self, offset: int, size: int) -> int:
            next(machine.vcpus[0].raw_exits())
            return 0

    machine.add(Device(), pio=0x10, length=1)
    with pytest.raises(StateError, match="vCPU 0 is running already"):
        machine.run(timeout=10)


def test_registers_by_name(guest: MakeGuest) -> None:
    machine = guest("F4  hlt")
    regs = machine.vcpus[0].regs
    assert regs.rip == 0x7C00
    assert regs.cs == x86.real_mode(ip=0x7C00).cs
    regs.rbx = 0x1234
    regs.r15 = (1 << 64) - 1
    regs.rax = -1
    machine.run(timeout=10)
    assert (regs.rbx, regs.r15, regs.rax) == (0x1234, (1 << 64) - 1, (1 << 64) - 1)
    assert regs.rip == 0x7C01
    assert dict(regs)["rbx"] == 0x1234
    assert "rbx=0x1234" in repr(regs)
    with pytest.raises(AttributeError, match="no register 'rzx'"):
        regs.rzx = 1
    with pytest.raises(ConfigError, match="64 bits"):
        regs.rax = 1 << 64


def test_control_and_segment_registers_can_be_set(guest: MakeGuest) -> None:
    machine = guest("F4  hlt")
    regs = machine.vcpus[0].regs
    regs.cr3 = 0x5000
    data = regs.ds
    data.base, data.selector = 0x10000, 0x1000
    regs.ds = data
    idt = regs.idt
    idt.limit = 7
    regs.idt = idt
    machine.run(timeout=10)
    assert regs.cr3 == 0x5000
    assert (regs.ds.base, regs.ds.selector) == (0x10000, 0x1000)
    assert regs.idt.limit == 7


def test_a_handler_reads_and_sets_registers(guest: MakeGuest) -> None:
    class Magic:
        """Writing a port adds 1 to BX and skips the next instruction."""

        name = "magic"
        seen: list[int] = []  # noqa: RUF012

        def write(self, offset: int, size: int, value: int) -> None:
            regs = machine.vcpus[0].regs
            self.seen.append(regs.rax & 0xFF)
            regs.rbx += 1
            regs.rip += 1

    machine = guest(
        """
        31 DB        xor bx, bx
        B0 05        mov al, 5
        E6 10        out 0x10, al
        F4           hlt
        E6 10        out 0x10, al
        F4           hlt
        B0 06        mov al, 6
        F4           hlt
        """,
        devices=[Placement(Magic(), Space.PIO, 0x10, 1)],
    )
    machine.run(timeout=10)
    regs = machine.vcpus[0].regs
    assert Magic.seen == [5, 5]
    assert (regs.rbx & 0xFFFF, regs.rax & 0xFF, regs.rip) == (2, 6, 0x7C0D)


def test_registers_cannot_be_set_while_a_read_waits(guest: MakeGuest) -> None:
    class Early:
        name = "early"

        def read(self, offset: int, size: int) -> int:
            machine.vcpus[0].regs.rbx = 1
            return 5

    machine = guest(ADD, devices=[Placement(Early(), Space.PIO, 0x10, 1)])
    with pytest.raises(StateError, match="middle of an instruction"):
        machine.run(timeout=10)


def test_registers_set_after_an_answered_read_stay(guest: MakeGuest) -> None:
    """KVM finishes the IN first: otherwise its own completion would overwrite them."""
    machine = guest(ADD)
    exits = machine.vcpus[0].raw_exits()
    read = next(exits)
    assert isinstance(read, IoIn)
    read.answer(7)
    cpu = machine.vcpus[0]
    assert cpu.regs.rip in (0x7C00, 0x7C02)
    cpu.regs.rbx = 9
    assert cpu.regs.rax & 0xFF == 7
    cpu.regs.rax = 20
    assert next(exits) == IoOut(port=0x11, size=1, data=b"\x15")
    assert cpu.regs.rbx == 9


def test_the_whole_state_can_be_moved_to_another_machine(guest: MakeGuest) -> None:
    code = """
        40           inc ax
        E6 10        out 0x10, al
        EB FB        jmp $-3
    """
    first, second = guest(code), guest(code)
    exits = first.vcpus[0].raw_exits()
    for _ in range(3):
        next(exits)
    first.vcpus[0].regs.rcx = first.vcpus[0].regs.rcx
    second.vcpus[0].state = first.vcpus[0].state
    assert next(second.vcpus[0].raw_exits()) == IoOut(port=0x10, size=1, data=b"\4")


def test_an_empty_machine_starts_as_after_power_on(kvm: None) -> None:
    with Machine(memory="1M", devices=[]) as machine:
        state = machine.vcpus[0].state
        assert (state.cs.selector, state.cs.base, state.rip) == (0xF000, 0xFFFF0000, 0xFFF0)
        machine.memory.write(0x1000, b"\xb0\x2a\xe6\x10\xf4")
        machine.vcpus[0].state = x86.real_mode(ip=0x1000)
        assert next(machine.vcpus[0].raw_exits()) == IoOut(port=0x10, size=1, data=b"*")


def test_virtual_memory(guest: MakeGuest) -> None:
    machine = guest("F4  hlt", mode=Mode.LONG)
    cpu = machine.vcpus[0]
    machine.run(timeout=10)
    assert cpu.translate(0x7C00) == 0x7C00
    assert cpu.read(0x7C00, 1) == b"\xf4"
    cpu.write(0x2FFC, b"across pages\0")
    assert machine.memory.read(0x2FFC, 12) == b"across pages"
    assert cpu.read_cstring(0x2FFC) == b"across pages"
    unmapped = "^virtual address 0xffff800000000000 is not mapped: PML4E"
    with pytest.raises(TranslationError, match=unmapped):
        cpu.read(0xFFFF_8000_0000_0000, 8)
    walk = cpu.walk(0x7C00, access="execute")
    assert walk.physical == 0x7C00
    assert len(walk.levels) == 3


def test_a_parked_vcpu_runs_once_it_is_started(guest: MakeGuest) -> None:
    """Two vCPUs count in the same memory; each halts, and the run ends when both have."""
    machine = guest(
        """
        B9 E8 03               mov cx, 1000
        F0 FF 06 00 05         lock inc word [0x500]
        E2 F9                  loop $-5
        F4                     hlt
        """,
        vcpus=2,
    )
    second = machine.vcpus[1]
    assert second.parked
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    assert machine.memory.read_u16(0x500) == 1000

    for cpu in machine.vcpus:
        cpu.state = x86.real_mode(ip=0x7C00)
        cpu.parked = False
    result = machine.run(timeout=20)
    assert result.outcome is Outcome.HALTED
    assert "every vCPU" in result.sentence
    assert machine.memory.read_u16(0x500) == 3000


@pytest.mark.parametrize("which", [0, 1])
def test_several_vcpus_end_together(guest: MakeGuest, which: int) -> None:
    """Whichever exits or spins: the run has one end, and takes all of them out of the guest."""
    machine = guest("FA EB FE  cli; jmp $", vcpus=3)
    machine.memory.write(0x2000, b"\xb0\x07\xe6\xf4")
    for cpu in machine.vcpus:
        cpu.state = x86.real_mode(ip=0x7C00)
        cpu.parked = False
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    threading.Timer(0.02, machine.stop).start()
    assert machine.run(timeout=20).outcome is Outcome.STOPPED
    machine.vcpus[which].state = x86.real_mode(ip=0x2000)
    result = machine.run(timeout=20)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 7)


def test_an_exception_on_another_vcpus_thread_comes_out_of_run(guest: MakeGuest) -> None:
    class Bad:
        name = "bad"

        def write(self, offset: int, size: int, value: int) -> None:
            raise ZeroDivisionError(threading.get_ident())

    machine = guest("FA EB FE  cli; jmp $", vcpus=2)
    machine.add(Bad(), pio=0x10, length=1)
    machine.memory.write(0x2000, b"\xe6\x10\xf4")
    machine.vcpus[1].state = x86.real_mode(ip=0x2000)
    machine.vcpus[1].parked = False
    with pytest.raises(ZeroDivisionError) as caught:
        machine.run(timeout=20)
    assert caught.value.args[0] != threading.get_ident()
    assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT


def test_registers_taken_from_the_page_bring_no_interrupt_of_the_past(guest: MakeGuest) -> None:
    """KVM adds each that it injects to the bitmap in the page, and takes none out."""
    cpu = guest("F4   hlt").vcpus[0]
    everything = cpu.engine.sync_regs()
    everything.sregs.cr2 = 0x1234
    end = 304 + 144 + 312  # the end of kvm_sregs in the page
    cpu.engine.page[end - 32 : end] = b"\xff" * 32
    cpu.engine.commit_sregs()
    assert cpu.regs.cr2 == 0x1234
    assert cpu.kvm.get_sregs().interrupt_bitmap == [0, 0, 0, 0]
