"""The stepping prompt, driven as a script drives it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pykvm.cli.step_commands import COMMANDS, Leave, command, words_like
from pykvm.cli.stepper import Stepper
from pykvm.machine import Machine
from support.debugging import BREAKPOINTS, STEPS
from support.irqchips import IRQCHIPS
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

    def __init__(self, machine: Machine, image: str = "") -> None:
        self.machine = machine
        self.shown: list[str] = []
        self.stepper = Stepper(machine, self.shown.append, image=image)

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
    shown = step("n").splitlines()
    assert shown[0] == "[1] the guest writes 0x41 'A' to port 0x3f8; com1 gets it"
    assert shown[1].startswith("    0x7c05  ")
    assert step("").startswith(
        "[2] the guest reads 1 byte from port 0x48; no device is there: the run would end as a cra"
    )
    step("t")
    assert step("n").startswith("[3] the guest reads 1 byte from port 0x3fd; com1 answers")
    assert step.machine.memory.read_u8(0x500) == 0xFF
    assert step("n").startswith("[4] the guest writes 0xa to port 0x3f8; com1 gets it")
    shown = step("n").splitlines()
    assert shown[0] == "    | A"
    assert shown[1].startswith("[5] the guest writes 0x2 to port 0xf4; debug-exit gets it")
    assert step("n").startswith("the guest exited with code 2")
    assert step("n") == "the guest exited with code 2"


def test_a_read_where_nothing_is_ends_the_guest_as_in_a_run(step: Session) -> None:
    step("n 2")
    shown = step("n")
    assert "wild access: the guest read 1 byte(s) from port 0x48" in shown
    assert step.stepper.ending


def test_the_instruction_is_shown_where_rip_is_past_it(step: Session) -> None:
    """Wherever this host's KVM leaves RIP."""
    where = [step("n").splitlines()[1].split()[0] for _ in range(2)]
    assert where == ["0x7c05", "0x7c06"]


def test_as_disassembled(step: Session) -> None:
    assert step("n").splitlines()[1] == "    0x7c05  out dx, al"


def test_answered_by_hand(step: Session) -> None:
    step("n 2")
    assert step("a 0x5a") == "answered with 0x5a; n goes on"
    step("n")
    assert step.machine.memory.read_u8(0x500) == 0x5A
    assert step.machine.vcpus[0].regs.rax & 0xFF == 0x5A


def test_only_a_read_is_answered_once(step: Session) -> None:
    assert step("a 1").startswith("the guest waits for no answer here")
    assert step("t").startswith("the guest is at no exit")
    step("n")
    assert step("a 1").startswith("the guest waits for no answer here")
    step("n")
    assert "does not fit" in step("a 0x100")
    assert step("a 1").startswith("answered")
    assert step("a 1").startswith("the guest waits for no answer here")


def test_a_write_that_is_taken(step: Session) -> None:
    step("n")
    assert step("t").startswith("taken: nothing else answers")
    step("n")
    step("a 0")
    step("n 2")
    assert step.machine.serial.text == ""


@pytest.mark.needs_host(STEPS)
def test_one_instruction(step: Session) -> None:
    assert step("s").splitlines() == [
        "[1] the guest stops after a single step",
        "    0x7c03  mov al, 0x41",
    ]
    assert step("step").startswith("[2] the guest stops after a single step\n    0x7c05  ")
    assert step("s").startswith("[3] the guest writes 0x41 'A' to port 0x3f8")
    # The next exit comes by itself again.
    assert step("next").startswith("[4] the guest reads 1 byte from port 0x48")


@pytest.mark.needs_host(BREAKPOINTS)
def test_breakpoints(step: Session) -> None:
    assert step("b") == "no breakpoints"
    assert step("break 0x7c05") == "breakpoint at 0x7c05"
    assert "a breakpoint stopped the guest at 0x7c05" in step("c")
    assert step("n").startswith("[1] the guest writes 0x41")
    assert step("delete 0x7c05") == ""
    assert step("delete 0x7c05").startswith("there is no breakpoint at 0x7c05")


@pytest.mark.needs_host(BREAKPOINTS)
def test_until(step: Session) -> None:
    assert "stopped the guest at 0x7c05" in step("until 0x7c03+2")
    assert step("b") == "no breakpoints"
    assert "a text to wait for stands in quotes: until 'login:'" in step("until login:")
    assert "the guest said 'A'" in step("until 'A'")


def test_continue_runs_to_the_end_of_the_guest(step: Session) -> None:
    step("n 2")
    step("a 0")
    shown = step("c").splitlines()
    assert shown[0] == "    | A"
    assert shown[1].startswith("the guest exited with code 2")
    assert step("n") == "the guest exited with code 2"


def test_registers(step: Session) -> None:
    assert step("r rip") == "rip = 0x7c00"
    assert step("set rax=0x1234") == "rax = 0x1234"
    assert step("r rbx = rax+1") == "rbx = 0x1235"
    assert step.machine.vcpus[0].regs.rbx == 0x1235
    assert step("r cs").startswith("cs = 0000 code16")
    assert "rax=0000000000001234" in step("regs")
    assert step("r foo") == "there is no register 'foo' to show"
    assert step("r cs=1").startswith("cs has the fields ")
    assert step("r rax=?") == "'?' is no number, register or symbol"
    assert step("r cr0") == "cr0 = 00000010 [ET]"
    assert step("set rflags=0") == "rflags = 00000002 []"
    assert step("set gdt.limit=0x7f") == "gdt.limit = 0x7f"
    assert step.machine.vcpus[0].regs.gdt.limit == 0x7F
    assert step("set ds.base=0x10") == "ds.base = 0x10"
    assert step.machine.vcpus[0].regs.ds.base == 0x10
    assert step("set ds.colour=1").startswith("ds has the fields ")
    assert "ds.type is an integer from 0 to 255" in step("set ds.type=0x100")
    assert step("r ds.colour") == "ds has no field 'colour'"


@pytest.mark.kvm
def test_segments_are_shown_and_set_as_the_mode_has_them(guests: Path) -> None:
    with Machine(guests / "hello.elf") as machine:
        step = Session(machine)
        assert step("r tr").startswith("tr = 0038 tss64 busy base=")
        assert step("set cs.type=3") == "cs.type = 0x3"
        assert machine.vcpus[0].regs.cs.type == 3


def test_registers_are_not_set_while_a_read_waits(step: Session) -> None:
    step("n 2")
    assert step("set rcx=7").startswith("the guest waits for an answer")
    step("a 1")
    assert step("set rcx=7") == "rcx = 0x7"
    assert step("n").startswith("[3] the guest reads 1 byte from port 0x3fd")


def test_skipping_code(step: Session) -> None:
    """From the start to the last two instructions."""
    step("r rip=0x7c00+21")
    assert step("n").startswith("[1] the guest writes 0x2 to port 0xf4")


def test_memory_commands(step: Session) -> None:
    assert step("m 0x7c00 4").startswith("0x7c00: ba f8 03 b0  ")
    assert step("x rip 1").startswith("0x7c00: ba  ")
    assert step("mp 0x7c03 2").startswith("0x7c03: b0 41  ")
    assert len(step("m 0").splitlines()) == 4
    assert "0x" in step("mp 0x100000")
    assert step("m 0 0") == "a length from 1 to 65536, not 0"
    assert step("m") == "usage: m ADDR [LENGTH]"


def test_looking_around(step: Session) -> None:
    assert step("d").splitlines()[0].startswith("ram 0x0-0x100000")
    assert "com1 (ports 0x3f8-0x3ff)" in step("d")
    assert "code at 0x7c00: " in step("p")
    assert step("pt 0x7c00").splitlines() == [
        "0x7c00 without paging: linear addresses are physical ones",
        "  = 0x7c00",
        "  in ram 0x0-0x100000",
    ]
    assert step("w 0xd0000000").endswith("in no memory, and no device is there")
    assert step("cpu") == "* 0 real"
    assert step("cpu 1").startswith("there are vCPUs 0 to 0")
    assert step("idt").startswith("interrupt vector table at 0x0, limit 0x")
    assert step("tss") == "TR names no task state segment" or "TSS at" in step("tss")


@pytest.mark.parametrize("ask", ["h", "help", "?"])
def test_help_lists_all_commands(step: Session, ask: str) -> None:
    shown = step(ask)
    for one in COMMANDS:
        assert f"  {', '.join(one.names)} " in shown
        assert one.help in shown


def test_names_of_commands_are_there_once() -> None:
    names = [name for one in COMMANDS for name in one.names]
    assert len(names) == len(set(names))


def test_what_tab_offers(step: Session) -> None:
    assert words_like(step.stepper, "de", first=True) == ["delete", "devices"]
    assert words_like(step.stepper, "rf", first=False) == ["rflags"]
    assert words_like(step.stepper, "zz", first=True) == []


def test_typing_at_the_guest(step: Session) -> None:
    step("i hello there")
    assert step.machine.serial.pending == len("hello there\n")


@pytest.mark.parametrize("leave", ["q", "quit", "exit"])
def test_mistakes_do_not_end_it(step: Session, leave: str) -> None:
    assert step("bogus") == "there is no command 'bogus'; help lists them"
    assert step("n some") == "'some' is not a number (write 10 or 0x10)"
    assert step("c now") == "usage: c"
    with pytest.raises(Leave):
        step(leave)


@without("triple-fault")
def test_a_guest_that_dies_can_still_be_looked_at(guests: Path) -> None:
    with Machine(guests / "triple.elf", memory="8M") as machine:
        session = Session(machine)
        shown = ""
        while "has died of a triple fault" not in shown:
            shown = session("n")
        assert "triple fault: #UD" in shown
        assert "long mode" in session("r")
        assert "PML4E" in session("w main")
        assert "no gate is present" in session("idt")
        assert "<- cs" in session("gdt")
        assert session("tss").startswith("64-bit TSS at ")
        assert "triple fault" in session("n")


@pytest.mark.kvm
def test_a_halted_guest(guests: Path) -> None:
    with Machine(guests / "halt.elf", memory="8M") as machine:
        session = Session(machine)
        shown = ""
        while "halts until an interrupt comes" not in shown:
            shown = session("n")
        assert "halted with nothing to wake it" in session("n")


@pytest.mark.kvm
@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_timers_and_interrupts_come(guests: Path, irqchip: str) -> None:
    """As in a run: the guest counts ten ticks of the 8254."""
    with Machine(guests / "pit.elf", irqchip=irqchip) as machine:
        session = Session(machine)
        for _ in range(1000):
            shown = session("n")
            if session.stepper.ending:
                break
        assert shown.splitlines()[-1].startswith("the guest exited with code 0")
        assert "10 ticks" in machine.serial.text


@pytest.mark.kvm
def test_two_vcpus(guests: Path) -> None:
    with Machine(guests / "locks.elf", vcpus=2, args=["2", "5"]) as machine:
        session = Session(machine)
        seen = set()
        while not session.stepper.ending:
            shown = session("n")
            seen |= set(re.findall(r"\] vCPU (\d) ", shown))
        assert seen == {"0", "1"}
        assert "2 processors" in machine.serial.text
        assert "1 " in session("cpu")


@pytest.mark.kvm
@pytest.mark.parametrize("way", ["off", "reset", "panic"])
def test_every_end_of_a_guest_is_told(guests: Path, way: str) -> None:
    with Machine(guests / "ends.elf", args=[way]) as machine:
        result = machine.run(timeout=20)
    with Machine(guests / "ends.elf", args=[way]) as machine:
        session = Session(machine)
        while not session.stepper.ending:
            session("n")
        assert session.stepper.ending == result.sentence


@pytest.mark.kvm
def test_lines_of_source(guests: Path) -> None:
    with Machine(guests / "hello.elf") as machine:
        session = Session(machine, image=str(guests / "hello.elf"))
        assert re.search(r" serial_write\+0x\w+  \w+\.[hc]:\d+  ", session("n"))


@pytest.mark.kvm
def test_a_script_on_stdin_is_echoed(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("step", guests / "hello.elf", stdin="n\nr rip\nc\nq\n")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.search(r"about to start at 0x[0-9a-f]+ _start", lines[0])
    assert lines[1] == "step> n"
    assert lines[2] == "[1] the guest reads 1 byte from port 0x3fd; com1 answers"
    assert re.match(r"    0x[0-9a-f]+ serial_write\+", lines[3])
    assert "    | Hello from long mode!" in lines
    assert lines[-1] == "step> q"


@pytest.mark.kvm
def test_the_end_of_the_script_is_the_end(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("step", guests / "busy.elf", stdin="r rip\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_file(pykvm: Pykvm) -> None:
    assert pykvm("step", "nowhere.elf").returncode == 2


@pytest.mark.kvm
def test_options_of_run_that_make_sense(pykvm: Pykvm, guests: Path, tmp_path: Path) -> None:
    output = tmp_path / "serial"
    done = pykvm(
        *("step", "--smp", "2", "--irqchip", "split", "--serial", f"file:{output}"),
        guests / "smp.elf",
        stdin="n\ncpu\nc\nq\n",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "[1] vCPU 0 " in done.stdout
    assert "* 0 long" in done.stdout
    assert "    | " not in done.stdout
    assert output.read_text().startswith("SMP: 2 processors")
