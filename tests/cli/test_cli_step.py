"""The stepping prompt, driven as a script drives it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pykvm.cli.step import COMMANDS, Leave, command
from pykvm.cli.stepper import Stepper
from pykvm.machine import Machine
from support.debugging import STEPS
from support.listing import assemble
from support.quirks import without

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]

GUEST = """
    BA F8 03       mov dx, 0x3f8
    B0 41          mov al, 'A'
    EE             out dx, al
    E4 48          in al, 0x48
    A2 00 05       mov [0x500], al
    BA FD 03       mov dx, 0x3fd
    EC             in al, dx
    B0 0A          mov al, '\\n'
    BA F8 03       mov dx, 0x3f8
    EE             out dx, al
    B0 02          mov al, 2
    E6 F4          out 0xf4, al
"""


class Session:
    """A stepper whose lines are kept."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.shown: list[str] = []
        self.stepper = Stepper(machine, self.shown.append)

    def __call__(self, line: str) -> str:
        """What is shown for a command."""
        self.shown.clear()
        command(self.stepper, line)
        return "\n".join(self.shown)


@pytest.fixture
def step(kvm: None) -> Iterator[Session]:
    with Machine(assemble(GUEST), mode="real", memory="1M") as machine:
        yield Session(machine)


def test_exit_by_exit(step: Session) -> None:
    assert step("n").startswith("[1] IoOut(port=0x3f8, size=1, data=b'A') for com1 at 0x7c0")
    assert step("").startswith("[2] IoIn(port=0x48, size=1, count=1) for nobody at 0x7c0")
    shown = step("n").splitlines()
    assert shown[0] == "nobody is there: reads give all ones, writes go nowhere"
    assert shown[1].startswith("[3] IoIn(port=0x3fd, size=1, count=1) for com1")
    assert step.machine.memory.u8(0x500) == 0xFF
    assert step("n").startswith("[4] IoOut(port=0x3f8, size=1, data=b'\\n') for com1")
    shown = step("n").splitlines()
    assert shown[0] == "    | A"
    assert shown[1].startswith("[5] IoOut(port=0xf4")
    assert step("n") == "the guest exited with code 2"
    assert step("n") == "the guest exited with code 2"


def test_answered_by_hand(step: Session) -> None:
    step("n 2")
    assert step("a 0x5a") == ""
    step("n")
    assert step.machine.memory.u8(0x500) == 0x5A
    assert step.machine.vcpus[0].regs.rax & 0xFF == 0x5A


def test_only_a_read_is_answered_once(step: Session) -> None:
    assert step("a 1").startswith("the guest waits for no answer here")
    step("n")
    assert step("a 1").startswith("the guest waits for no answer here")
    step("n")
    assert "does not fit" in step("a 0x100")
    assert step("a 1") == ""
    assert step("a 1").startswith("the guest waits for no answer here")


@pytest.mark.needs_host(STEPS)
def test_one_instruction(step: Session) -> None:
    assert step("s") == "[1] stepped to 0x7c03: b0 41 ee e4 48 a2 00 05"
    assert step("s").startswith("[2] stepped to 0x7c05: ee e4")
    assert step("s").startswith("[3] IoOut(port=0x3f8")
    # The next exit comes by itself again.
    assert step("n").startswith("[4] IoIn(port=0x48")


def test_to_the_end(step: Session) -> None:
    step("n 3")
    shown = step("c").splitlines()
    assert shown[0] == "    | A"
    assert shown[1].startswith("the guest exited with code 2 (")
    assert step("n") == "the guest exited with code 2"


def test_registers(step: Session) -> None:
    assert step("r rip") == "rip = 0x7c00"
    assert step("r rax=0x1234") == "rax = 0x1234"
    assert step("r rbx = rax+1") == "rbx = 0x1235"
    assert step.machine.vcpus[0].regs.rbx == 0x1235
    assert step("r cs").startswith("cs = 0000 code16")
    assert "rax=0000000000001234" in step("r")
    assert step("r foo") == "there is no register 'foo' to show"
    assert step("r cs=1") == "there is no register 'cs' to set"
    assert step("r rax=?") == "'?' is no number, register or symbol"


def test_setting_a_register_lets_the_device_answer_first(step: Session) -> None:
    step("n 3")
    step("r rcx=7")
    assert step.machine.vcpus[0].regs.rax & 0xFF == 0x60
    assert step.machine.vcpus[0].regs.rcx == 7
    assert step("n").startswith("[4] IoOut")


def test_skipping_code(step: Session) -> None:
    """From the start to the last two instructions."""
    step("r rip=0x7c00+21")
    assert step("n").startswith("[1] IoOut(port=0xf4, size=1")


def test_memory(step: Session) -> None:
    assert step("m 0x7c00 4").startswith("0x7c00: ba f8 03 b0  ")
    assert step("m rip 1").startswith("0x7c00: ba  ")
    assert step("mp 0x7c03 2").startswith("0x7c03: b0 41  ")
    assert len(step("m 0").splitlines()) == 4
    assert "0x" in step("mp 0x100000")
    assert step("m 0 0") == "a length from 1 to 65536, not 0"
    assert step("m") == "usage: m ADDR [LENGTH]"


def test_looking_around(step: Session) -> None:
    assert step("d").splitlines()[0].startswith("ram 0x0-0x100000")
    assert "com1 (ports 0x3f8-0x3ff)" in step("d")
    assert step("p").startswith("code at 0x7c00: ")
    assert step("w 0x7c00").endswith("= 0x7c00")
    assert [line.split()[0] for line in step("h").splitlines()][:-1] == list(COMMANDS)


def test_typing_at_the_guest(step: Session) -> None:
    step("i hello there")
    assert step.machine.serial.pending == len("hello there\n")


def test_mistakes_do_not_end_it(step: Session) -> None:
    assert step("bogus") == "there is no command 'bogus'; h lists them"
    assert step("n some") == "'some' is not a number (write 10 or 0x10)"
    assert step("c now") == "usage: c"
    with pytest.raises(Leave):
        step("q")


@without("triple-fault")
def test_a_guest_that_dies_can_still_be_looked_at(guests: Path) -> None:
    with Machine(guests / "triple.elf", memory="8M") as machine:
        session = Session(machine)
        shown = ""
        while "Shutdown()" not in shown:
            shown = session("n")
        assert "triple fault: #UD" in shown
        assert "long mode" in session("r")
        assert "PML4E" in session("w main")


@pytest.mark.kvm
def test_a_halted_guest(guests: Path) -> None:
    with Machine(guests / "halt.elf", memory="8M") as machine:
        session = Session(machine)
        shown = ""
        while "Hlt()" not in shown:
            shown = session("n")
        assert "nothing here can wake it" in shown


@pytest.mark.kvm
def test_script(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("step", guests / "hello.elf", stdin="n\nr rip\nc\nq\n")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.search(r"about to start at 0x[0-9a-f]+ _start", lines[0])
    assert lines[1] == "step> n"
    assert re.match(r"\[1\] IoIn\(port=0x3fd, .*\) for com1 at 0x[0-9a-f]+ serial_write", lines[2])
    assert "    | Hello from long mode!" in lines
    assert lines[-1] == "step> q"


@pytest.mark.kvm
def test_the_end_of_the_script_is_the_end(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("step", guests / "busy.elf", stdin="r rip\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_file(pykvm: Pykvm) -> None:
    assert pykvm("step", "nowhere.elf").returncode == 2
