"""`CPU.raw_exits`: the loop of the KVM API by hand, on a real vCPU."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pykvm import CPU, ClosedError, ConfigError, Machine, Mode, Outcome, StateError
from pykvm.exits import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Shutdown, decode
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


ALL_SIZES = """
    66 BA 10 00      mov dx, 0x10
    B8 34 12 00 80   mov eax, 0x80001234
    EE               out dx, al
    66 EF            out dx, ax
    EF               out dx, eax
    EC               in al, dx
    66 ED            in ax, dx
    ED               in eax, dx
    A2 01 00 00 D0   mov [0xd0000001], al
    66 A3 02 00 00 D0  mov [0xd0000002], ax
    A3 04 00 00 D0   mov [0xd0000004], eax
    A0 01 00 00 D0   mov al, [0xd0000001]
    66 A1 02 00 00 D0  mov ax, [0xd0000002]
    A1 04 00 00 D0   mov eax, [0xd0000004]
    F4               hlt
"""


def test_exits_made_in_c_are_those_that_decode_makes(guest: MakeGuest) -> None:
    cpu = guest(ALL_SIZES, mode=Mode.PROTECTED).vcpus[0]
    seen = []
    for exit in cpu.raw_exits(timeout=20):
        seen.append(type(exit))
        if exit.awaits_answer:
            assert exit.answered == b"\xff" * exit.size  # type: ignore[attr-defined]
        other = decode(cpu.engine.run_page)
        assert exit == other
        assert [type(value) for value in vars_of(exit)] == [type(value) for value in vars_of(other)]
        with pytest.raises(AttributeError):
            setattr(exit, "size", 1)  # noqa: B010
        if isinstance(exit, Hlt):
            break
    assert seen == [kind for kind in (IoOut, IoIn, MmioWrite, MmioRead) for _ in range(3)] + [Hlt]


def vars_of(exit: Exit) -> list[object]:
    return [getattr(exit, name) for name in type(exit).__fields__]


def test_exits_made_in_c_leave_no_reference(guest: MakeGuest) -> None:
    machine = guest("""
        E6 10        out 0x10, al
        E4 10        in al, 0x10
        EB FA        jmp $-4
    """)
    kinds = (IoOut, IoIn)
    before = [sys.getrefcount(kind) for kind in kinds]
    exits = machine.vcpus[0].raw_exits()
    for _ in range(200):
        next(exits)
    del exits
    machine.close()
    assert [sys.getrefcount(kind) for kind in kinds] == before


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
    machine = guest(ADD, unclaimed="open-bus")
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


def test_a_loop_that_a_run_has_taken_over_says_so(guest: MakeGuest) -> None:
    machine = guest(ADD, unclaimed="open-bus")
    loop = machine.vcpus[0].raw_exits()
    next(loop)
    assert machine.run(timeout=10).outcome is Outcome.HALTED
    with pytest.raises(StateError, match="taken this vCPU over"):
        next(loop)
    # It has ended, and a later one is none of its business.
    later = machine.vcpus[0].raw_exits()
    next(later)
    del loop
    next(later)


def test_loops_taken_over_leave_the_threads_signals_as_they_were(guest: MakeGuest) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    machine = guest(ADD)
    loops = [machine.vcpus[0].raw_exits() for _ in range(3)]
    for loop in loops:
        next(loop)
    del loop, loops
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def looping(machine: Machine) -> tuple[threading.Thread, list[ClosedError]]:
    """A thread that takes exits by hand until the machine is closed, and how it ended."""
    ended: list[ClosedError] = []

    def loop() -> None:
        try:
            for _ in machine.vcpus[0].raw_exits(timeout=30):
                pass
        except ClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    return thread, ended


def test_closing_ends_a_loop_in_another_thread(guest: MakeGuest) -> None:
    """Whether it spins in the guest or is between two exits: ClosedError, and no crash."""
    for code in ("FA EB FE  cli; jmp $", "E6 10 EB FC  out 0x10, al; jmp $-2"):
        for _ in range(20):
            machine = guest(code)
            thread, ended = looping(machine)
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
            thread, ended = looping(machine)
            for _ in range(delay):
                pass
            machine.close()
            thread.join(20)
            assert len(ended) == 1
    finally:
        sys.setswitchinterval(interval)


def _set_a_register(cpu: CPU) -> None:
    next(cpu.raw_exits())
    cpu.regs.rcx += 1  # the OUT is completed first


def _save(cpu: CPU) -> None:
    next(cpu.raw_exits())
    cpu.save()


def _load(cpu: CPU) -> None:
    state = cpu.save()
    next(cpu.raw_exits())
    cpu.load(state)


@pytest.mark.parametrize("use", [_set_a_register, _save, _load])
def test_closing_at_any_moment_of_what_uses_the_vcpu_in_another_thread(
    guest: MakeGuest, use: Callable[[CPU], None]
) -> None:
    def repeat(cpu: CPU) -> None:
        while True:
            use(cpu)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            for delay in range(0, 40_000, 800):
                machine = guest("E6 10 EB FC  out 0x10, al; jmp $-2")
                repeating = pool.submit(repeat, machine.vcpus[0])
                for _ in range(delay):
                    pass
                machine.close()
                assert isinstance(repeating.exception(20), ClosedError)
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
