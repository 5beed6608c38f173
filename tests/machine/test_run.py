"""How runs end, and that the machine can run on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pykvm import (
    ClosedError,
    ConfigError,
    GuestError,
    GuestExit,
    GuestReset,
    Machine,
    Mode,
    Outcome,
    StateError,
)
from pykvm.bus import Placement, Space
from pykvm.exits import IoOut, MmioWrite
from pykvm.quirks import found, triple_fault
from support.guest import MakeGuest
from support.quirks import without

pytestmark = pytest.mark.kvm

SPIN = """
    FA           cli
    EB FE        jmp $
"""

HALT = """
    FA           cli
    F4           hlt
    EB FC        jmp $-2
"""

EXIT_7 = """
    B0 07        mov al, 7
    E6 F4        out 0xf4, al
    F4           hlt
"""

# Counts up at 0x500, one port write a round.
COUNT = """
    FF 06 00 05  inc word [0x500]
    E6 80        out 0x80, al
    EB F8        jmp $-6
"""


class Counter:
    """Counts the writes it gets; `then` is called at each."""

    name = "counter"

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.writes = 0
        self.then = then

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes += 1
        self.then()


def test_exit_code_is_the_value_written(guest: MakeGuest) -> None:
    result = guest(EXIT_7).run(timeout=10)

    assert result.outcome is Outcome.EXITED
    assert result.exit_code == 7
    assert not result.ok
    assert result.exits == {"IoOut": 1}
    assert "the guest exited with code 7" in str(result)


def test_halt_for_good(guest: MakeGuest) -> None:
    result = guest(HALT).run(timeout=10)

    assert result.outcome is Outcome.HALTED
    assert result.exit_code is None
    assert result.exits == {"Hlt": 1}


def test_a_reset_is_told_by_name(guest: MakeGuest) -> None:
    machine = guest("""
        B0 FE        mov al, 0xfe
        E6 64        out 0x64, al
        F4           hlt
    """)
    result = machine.run(timeout=10)

    assert result.outcome is Outcome.RESET
    assert "keyboard controller" in result.sentence


def test_timeout_takes_out_a_guest_that_spins_with_interrupts_off(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    result = machine.run(timeout=0.05)

    assert result.outcome is Outcome.TIMEOUT
    assert result.seconds >= 0.05
    # And again: the machine can run on.  On a busy host it may not have begun until now.
    while (result := machine.run(timeout=0.01)).outcome is Outcome.TIMEOUT:
        if machine.vcpus[0].regs.rip == 0x7C01:
            break
    assert result.outcome is Outcome.TIMEOUT


def test_timeout_of_a_guest_that_only_exits(guest: MakeGuest) -> None:
    assert guest(COUNT).run(timeout=0.03).outcome is Outcome.TIMEOUT


def test_timeout_zero_still_returns(guest: MakeGuest) -> None:
    assert guest(SPIN).run(timeout=0).outcome is Outcome.TIMEOUT


def test_stop_from_another_thread(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    timer = threading.Timer(0.05, machine.stop)
    timer.start()
    result = machine.run(timeout=30)
    timer.join()

    assert result.outcome is Outcome.STOPPED


def test_stop_from_a_device_takes_effect_at_the_next_entry(guest: MakeGuest) -> None:
    machine = guest(COUNT, devices=[])
    counter = Counter(machine.stop)
    machine.add(counter, pio=0x80, length=1)

    assert machine.run(timeout=10).outcome is Outcome.STOPPED
    assert counter.writes == 1
    assert machine.run(timeout=10).outcome is Outcome.STOPPED
    assert counter.writes == 2
    assert machine.memory.read_u16(0x500) == 2


def test_what_the_guest_does_at_the_moment_of_a_stop_counts_more(guest: MakeGuest) -> None:
    def stop_and_exit() -> None:
        assert machine.stop()
        raise GuestExit(3)

    machine = guest(COUNT, devices=[])
    machine.add(Counter(stop_and_exit), pio=0x80, length=1)
    result = machine.run(timeout=10)

    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 3)


def test_stop_without_a_run_does_nothing(guest: MakeGuest) -> None:
    machine = guest(EXIT_7)

    assert machine.stop() is False
    assert machine.run(timeout=10).outcome is Outcome.EXITED


def test_until_a_function_holds(guest: MakeGuest) -> None:
    def counted(machine: Machine) -> bool:
        return machine.memory.read_u16(0x500) >= 5

    class Plain(Counter):
        name = "plain"

    machine = guest(COUNT, devices=[Placement(Plain(), Space.PIO, 0x80, 1)])
    result = machine.run(timeout=10, until=counted)

    assert result.outcome is Outcome.UNTIL
    assert machine.memory.read_u16(0x500) == 5
    assert "counted" in result.sentence


def test_until_a_text_appears_on_the_serial_port(guest: MakeGuest) -> None:
    # Writes a, b, c, ... for ever.
    machine = guest("""
        BA F8 03     mov dx, 0x3f8
        B0 61        mov al, 'a'
        EE           out dx, al
        FE C0        inc al
        EB FB        jmp $-3
    """)
    result = machine.run(timeout=10, until="cde")

    assert result.outcome is Outcome.UNTIL
    assert machine.serial.text == "abcde"
    assert machine.run(timeout=10, until="g").outcome is Outcome.UNTIL
    assert machine.serial.text == "abcdefg"


def test_an_exception_of_a_device_comes_out_of_run_and_the_machine_runs_on(
    guest: MakeGuest,
) -> None:
    class Fault(Exception):
        pass

    def fail() -> None:
        if counter.writes == 3:
            raise Fault("third")

    counter = Counter(fail)
    machine = guest(COUNT, devices=[Placement(counter, Space.PIO, 0x80, 1)])
    with pytest.raises(Fault, match="third"):
        machine.run(timeout=10)
    assert machine.memory.read_u16(0x500) == 3
    assert machine.run(timeout=10, until=lambda _: counter.writes == 5).outcome is Outcome.UNTIL
    assert machine.memory.read_u16(0x500) == 5


def test_a_device_that_answers_nothing_is_named(guest: MakeGuest) -> None:
    class Mute:
        name = "mute"

        def read(self, offset: int, size: int) -> int:
            return None  # type: ignore[return-value]

    machine = guest("E4 10  in al, 0x10", devices=[Placement(Mute(), Space.PIO, 0x10, 1)])
    with pytest.raises(ConfigError, match="device mute answered a read with None"):
        machine.run(timeout=10)


def test_unclaimed_port_ends_the_run_and_says_where(guest: MakeGuest) -> None:
    machine = guest("""
        B0 41        mov al, 'A'
        E6 99        out 0x99, al
        E4 98        in al, 0x98
        E6 F4        out 0xf4, al
    """)
    result = machine.run(timeout=10)

    assert result.outcome is Outcome.CRASHED
    assert result.exit == IoOut(port=0x99, size=1, data=b"A")
    assert result.error is not None
    assert "wrote 41 to port 0x99" in str(result)
    with pytest.raises(GuestError, match="wild access"):
        result.check()
    # The write is over; the read that is not answered gives all ones.
    assert machine.run(timeout=10).outcome is Outcome.CRASHED
    assert machine.run(timeout=10).exit_code == 0xFF


def test_unclaimed_accesses_float_when_asked_to(guest: MakeGuest) -> None:
    machine = guest(
        """
        B0 00        mov al, 0
        E6 99        out 0x99, al
        E4 98        in al, 0x98
        E6 F4        out 0xf4, al
        """,
        unclaimed="open-bus",
    )
    assert machine.run(timeout=10).exit_code == 0xFF


def test_wild_store(guest: MakeGuest) -> None:
    machine = guest(
        """
        C6 05 10 00 00 D0 2A   mov byte [0xd0000010], 42
        """,
        mode=Mode.PROTECTED,
    )
    result = machine.run(timeout=10)

    assert result.outcome is Outcome.CRASHED
    assert result.exit == MmioWrite(address=0xD0000010, data=b"\x2a")
    assert "0xd0000010" in str(result)


TRIPLE_FAULT = """
    0F 01 1D 09 7C 00 00   lidt [0x7c09]
    0F 0B                  ud2
    00 00 00 00 00 00      the IDT register: limit 0, base 0
"""


def test_a_triple_fault_gets_its_own_cause_or_none(guest: MakeGuest) -> None:
    """Some hosts' KVM resets the vCPU, and what stands at the reset vector is not to blame."""
    result = guest(TRIPLE_FAULT, mode=Mode.PROTECTED).run(timeout=10)

    assert result.outcome is Outcome.CRASHED
    assert result.error is not None
    assert result.error.kind == "triple fault"
    assert ("cause is not known" in str(result)) == bool(found([triple_fault.QUIRK]))
    assert "fffffff0" not in str(result)


@without("triple-fault")
def test_triple_fault_is_explained(guest: MakeGuest) -> None:
    result = guest(TRIPLE_FAULT, mode=Mode.PROTECTED).run(timeout=10)

    assert result.outcome is Outcome.CRASHED
    assert result.error is not None
    assert result.error.kind == "triple fault"
    assert "IDT" in result.error.cause
    assert result.error.registers["rip"] == 0x7C07


def test_running_twice_at_once_is_refused(guest: MakeGuest) -> None:
    machine = guest(COUNT, devices=[])
    seen: list[BaseException] = []

    def again() -> None:
        try:
            machine.run()
        except StateError as error:
            seen.append(error)
        machine.stop()

    machine.add(Counter(again), pio=0x80, length=1)
    machine.run(timeout=10)

    assert "running already" in str(seen[0])


def test_closing_while_it_runs_in_another_thread(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    results = []
    thread = threading.Thread(target=lambda: results.append(machine.run(timeout=30)))
    thread.start()
    while "running" not in repr(machine):
        time.sleep(0.001)  # the other thread has to get that far
    machine.close()
    thread.join(10)

    assert [result.outcome for result in results] == [Outcome.STOPPED]
    with pytest.raises(ClosedError):
        machine.run()
    machine.close()


def test_closing_from_inside_a_run_is_refused(guest: MakeGuest) -> None:
    machine = guest(COUNT, devices=[])
    machine.add(Counter(machine.close), pio=0x80, length=1)
    with pytest.raises(StateError, match="inside its own run"):
        machine.run(timeout=10)
    assert not machine.closed


def test_a_closed_machine_says_so(guest: MakeGuest) -> None:
    machine = guest(EXIT_7)
    machine.close()

    for use in (machine.run, lambda: machine.vcpus[0].regs.rip, machine.__enter__):
        with pytest.raises(ClosedError):
            use()


def test_time_inside_and_outside(guest: MakeGuest) -> None:
    result = guest(SPIN).run(timeout=0.05)

    assert 0 < result.guest_seconds <= result.seconds
    assert result.guest_seconds + result.outside_seconds == pytest.approx(result.seconds, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "memory is 4096 bytes at least, and a multiple of that, not 0"),
        ({"memory": -4096}, "4096 bytes at least, and a multiple of that, not -4096"),
        ({"memory": "lots"}, "'lots' is not a size"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": 10_000}, "10000"),
        ({"image": b"\xf4", "mode": "virtual"}, "mode is one of real, protected, long"),
        ({"mode": "real"}, "go with an image"),
        ({"args": ["x"]}, "go with an image"),
        ({"unclaimed": "maybe"}, "unclaimed is one of"),
        ({"cpu": "486"}, "486"),
    ],
)
def test_values_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Machine(**options)  # type: ignore[arg-type]


def test_reset_is_no_error() -> None:
    assert not issubclass(GuestReset, ConfigError)
