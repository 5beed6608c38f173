"""Talking to a guest on a real machine: `Console`."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pykvm import (
    ConfigError,
    GuestError,
    GuestFailed,
    Machine,
    Outcome,
    RunStopped,
    RunTimeout,
    StateError,
)
from pykvm.devices import DebugConsole
from pykvm.machine.console import Said
from support.guest import MakeGuest
from support.slowness import longer

pytestmark = pytest.mark.kvm

GREETING = "Type, and end with a line that is just q.\n"

# On COM2, "ab"; on the debug console, "c"; then on COM2 what comes on COM2.
TALKS = """
    BA F8 02     mov dx, 0x2f8
    B0 61        mov al, 'a'
    EE           out dx, al
    B0 62        mov al, 'b'
    EE           out dx, al
    B0 63        mov al, 'c'
    E6 E9        out 0xe9, al
    BA FD 02     mov dx, 0x2fd
    EC           in al, dx
    A8 01        test al, 1
    74 F8        jz $-6
    BA F8 02     mov dx, 0x2f8
    EC           in al, dx
    EE           out dx, al
    EB F1        jmp $-13
"""


@pytest.fixture
def echo(guests: Path) -> Iterator[Machine]:
    """A guest that sends back what it is sent, and exits after a line that is just q."""
    with Machine(guests / "echo.elf") as machine:
        yield machine


@contextmanager
def running(machine: Machine) -> Iterator[None]:
    """The machine runs in another thread, and is stopped at the end."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(machine.run)
        try:
            yield
        finally:
            while not run.done():
                machine.stop()
                time.sleep(0.001)


def test_what_was_said_and_what_came_before(echo: Machine) -> None:
    said = echo.serial.expect("just ", longer(10))
    before, _, _ = GREETING.partition("just ")
    assert said == Said("just ", before)
    echo.serial.sendline("one two three")
    said = echo.serial.expect(["four", re.compile(r"t(w)o")], longer(10))
    assert (said.text, said.before, said.alternative) == ("two", "q.\none ", 1)
    assert said.match[1] == "w"
    assert echo.serial.expect(b"\n", longer(10)).before == " three"


def test_the_guest_stops_where_it_was_awaited(echo: Machine) -> None:
    echo.serial.expect("Type", longer(10))
    assert echo.serial.text == "Type"
    assert echo.run(timeout=longer(10), until="and").check().matched == "and"
    assert echo.serial.expect(" end", longer(10)).before == ""


def test_what_was_said_already_is_found_without_a_run(echo: Machine) -> None:
    echo.run(timeout=longer(10), until="q.\n").check()
    echo.serial.send("lost and found\n")
    echo.run(timeout=longer(0.5))
    echo.serial.expect("lost", timeout=0)
    assert echo.serial.expect("found", timeout=0).before == " and "


def test_a_wait_that_does_not_come_true_raises(echo: Machine, guests: Path) -> None:
    with pytest.raises(RunTimeout, match=r"awaited: 'never'\nThe last lines(.|\n)*just q\."):
        echo.serial.expect("never", longer(0.2))
    with pytest.raises(GuestFailed, match="the guest failed: it said 'just'"):
        echo.serial.send("just\n")
        echo.serial.expect("never", longer(10), fail=["just", "PANIC"])
    echo.serial.sendline("q")
    with pytest.raises(GuestFailed, match=r"the guest exited with code 0\nawaited: 'never'"):
        echo.serial.expect("never", longer(10))
    with Machine(guests / "triple.elf") as dies, pytest.raises(GuestError, match="triple fault"):
        dies.serial.expect("never", longer(10))


def test_stop_ends_a_wait(echo: Machine) -> None:
    stopping = threading.Timer(0.1, echo.stop)
    stopping.start()
    with pytest.raises(RunStopped):
        echo.serial.expect("never", None)
    stopping.join()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "an empty text is always there"),
        ([], "there is nothing in"),
        (3, "is text, bytes"),
        (bool, "takes functions"),
        (["good", re.compile("")], "matches an empty text"),
    ],
)
def test_what_cannot_be_waited_for(echo: Machine, pattern: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        echo.serial.expect(pattern, 1)  # type: ignore[arg-type]
    echo.serial.expect("Type", longer(10))


def test_each_console_is_listened_to_by_itself(guest: MakeGuest) -> None:
    machine = guest(TALKS)
    machine.console("com2").expect("b", longer(10))
    machine.console("debugcon").expect("c", longer(10))
    machine.console("com2").send("x")
    assert machine.console("com2").expect("x", longer(10)).before == ""
    assert machine.serial.text == ""
    assert machine.console("com2") is machine.console("com2")


def test_a_console_that_is_none(guest: MakeGuest) -> None:
    machine = guest(TALKS)
    with pytest.raises(ConfigError, match="no console named com9; it has com1"):
        machine.console("com9")
    with pytest.raises(ConfigError, match="post is no console"):
        machine.console("post")
    with pytest.raises(StateError, match="debugcon only prints"):
        machine.console("debugcon").sendline("x")


def test_a_device_of_ones_own_is_a_console(guest: MakeGuest) -> None:
    machine = guest("B0 68 E6 99 F4  mov al, 'h'; out 0x99, al; hlt")
    machine.add(DebugConsole("mine"), pio=0x99, length=1)
    assert machine.console("mine").expect("h", longer(10)).text == "h"


def test_a_reset_puts_back_how_far_each_console_was_listened_to(guest: MakeGuest) -> None:
    machine = guest(TALKS)
    console = machine.console("com2")
    console.expect("a", longer(10))
    saved = machine.snapshot()
    for _ in range(3):
        assert console.expect("b", longer(10)).before == ""
        machine.console("debugcon").expect("c", longer(10))
        machine.reset(saved)
    with saved.fork() as twin:
        assert twin.console("com2").expect("b", longer(10)).before == ""


def test_a_prompt_is_what_nothing_follows(echo: Machine) -> None:
    echo.serial.expect("q.\n", longer(10))
    echo.serial.send("one # two\n~ # \x1b[6n")
    assert echo.serial.expect_prompt("# ", longer(20)).before == "one # two\n~ "
    echo.serial.send("x$ \x1b[")
    assert echo.serial.expect_prompt(timeout=longer(20)).before == "x"
    with running(echo):
        echo.serial.send("one # two\n~ # \x1b[6n")
        assert echo.serial.expect_prompt("# ", longer(20)).before.endswith("one # two\n~ ")
    with pytest.raises(RunTimeout):
        echo.serial.send("one # two")
        echo.serial.expect_prompt("# ", longer(0.5))


# Beside a run in another thread.


def test_the_run_of_another_thread_goes_on(echo: Machine) -> None:
    with running(echo):
        assert echo.serial.expect("q.\n", longer(10)).before == GREETING[:-3]
        for word in ("one", "two", "three"):
            echo.serial.sendline(word)
            assert echo.serial.expect("\n", longer(10)).before == word
        with pytest.raises(RunTimeout, match=r"runs on, and has not said 'never' in time"):
            echo.serial.expect("never", 0.05)
        with pytest.raises(GuestFailed, match="said 'bad'"):
            echo.serial.sendline("bad")
            echo.serial.expect("never", longer(10), fail="bad")
        echo.serial.sendline("q")
        with pytest.raises(GuestFailed, match=r"exited with code 0\nawaited: 'never'"):
            echo.serial.expect("never", longer(10))


def test_a_wait_inside_the_run_is_refused(echo: Machine) -> None:
    def listen(data: bytes) -> None:
        echo.serial.expect("x", 1)

    echo.serial.on_output(listen)
    with pytest.raises(StateError, match="called from inside the run"):
        echo.run(timeout=longer(10))


def test_two_waits_at_once(guest: MakeGuest) -> None:
    """Each for another console: one runs the machine, and when its wait is over the other does."""
    machine = guest(TALKS)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            first = pool.submit(machine.console("com2").expect, "b", longer(20))
            second = pool.submit(machine.console("debugcon").expect, "c", longer(20))
            assert (first.result().before, second.result().text) == ("a", "c")
            machine = guest(TALKS)


def test_two_waits_for_one_console(echo: Machine) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(echo.serial.expect, "never", longer(10))
        while not echo.serial.text:
            time.sleep(0.001)
        with pytest.raises(StateError, match="another thread waits for what com1 says"):
            echo.serial.expect("x", 1)
        echo.stop()
        assert isinstance(waiting.exception(20), RunStopped)


# The guest's time.


def test_a_warped_hour_is_over_soon(guests: Path) -> None:
    with Machine(guests / "echo.elf", clock="warp") as machine:
        machine.serial.expect("q.\n", longer(10))
        began, at = time.monotonic(), machine.clock.now()
        with pytest.raises(RunTimeout, match=r"after 0\.3 s of its time"):
            machine.serial.expect("never", 0.3)
        assert machine.clock.now() - at >= 300_000_000
        assert time.monotonic() - began < longer(10)


# What was said and when.


def test_the_transcript(echo: Machine) -> None:
    echo.serial.expect("q.\n", longer(10))
    echo.serial.sendline("one")
    echo.serial.expect("one\n", longer(10))
    echo.serial.sendline("two")
    echo.serial.expect("tw", longer(10))
    lines = echo.serial.transcript()
    assert [(line.typed, line.text) for line in lines] == [
        (False, GREETING),
        (True, "one\n"),
        (False, "one\n"),
        (True, "two\n"),
        (False, "tw"),
    ]
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    assert 0 < lines[0].time <= lines[-1].time <= echo.clock.now()


def test_a_transcript_after_a_reset(echo: Machine) -> None:
    echo.serial.expect("q.\n", longer(10))
    saved = echo.snapshot()
    echo.serial.sendline("undone")
    echo.serial.expect("undone\n", longer(10))
    echo.reset(saved)
    assert [line.text for line in echo.serial.transcript()] == [GREETING]
    echo.serial.sendline("one")
    echo.serial.expect("one\n", longer(10))
    assert [line.text for line in echo.serial.transcript()] == [GREETING, "one\n", "one\n"]


# asyncio.


def test_asyncio_in_any_order(guests: Path) -> None:
    async def talk(*, run_first: bool) -> None:
        with Machine(guests / "echo.elf") as machine:
            run = asyncio.create_task(machine.arun(timeout=longer(30)))
            if run_first:
                await asyncio.sleep(0.05)
            await machine.serial.aexpect("q.\n", longer(10))
            for word in ("one", "two"):
                machine.serial.sendline(word)
                assert (await machine.serial.aexpect("\n", longer(10))).before == word
            machine.serial.sendline("q")
            assert (await run).exit_code == 0

    asyncio.run(talk(run_first=True))
    asyncio.run(talk(run_first=False))


def test_asyncio_cancelled(echo: Machine) -> None:
    async def cancel() -> None:
        for wait in (echo.arun(), echo.serial.aexpect("never", None)):
            task = asyncio.create_task(wait)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert echo.run(timeout=0).outcome is Outcome.TIMEOUT
        run = asyncio.create_task(echo.arun())
        await asyncio.sleep(0.05)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(echo.serial.aexpect("never", None), 0.05)
        echo.serial.sendline("q")
        assert (await run).exit_code == 0

    before = threading.active_count()
    asyncio.run(cancel())
    assert threading.active_count() == before
