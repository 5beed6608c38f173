"""QEMU's options on pykvm's command line, as docs/from-qemu.md has them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pykvm.cli.options import OPTIONS, Options, parse
from pykvm.cli.qemu import ALONE, MISSING, WITH_VALUE
from pykvm.cli.status import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "from-qemu.md"
CODE = re.compile(r"`([^`]*)`")


def rows(title: str) -> list[list[str]]:
    """The rows of the table below a heading, without their heads."""
    text = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


EQUAL = [
    (CODE.findall(qemu)[0], next(iter(CODE.findall(here)), ""))
    for qemu, here, _ in rows("What has an equal")
]
NONE = [(words, says) for qemu, says in rows("What has none") for words in CODE.findall(qemu)]


def parsed(line: str, *guest: str) -> dict[str, object]:
    return {**vars(Options), **vars(parse([*shlex.split(line), *guest]))}


@pytest.mark.parametrize(("qemu", "here"), EQUAL)
def test_what_has_an_equal_is_parsed_as_it(qemu: str, here: str) -> None:
    guest = [] if qemu.startswith(("-kernel", "-bios")) else ["guest.elf"]
    assert parsed(qemu, *guest) == parsed(here, *guest)


@pytest.mark.parametrize(("qemu", "says"), NONE)
def test_what_has_none_says_what_there_is(qemu: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse([*shlex.split(qemu), "FILE"])
    assert says in str(caught.value)
    option = qemu.split(maxsplit=1)[0]
    # Models are looked up as those of --cpu.
    assert str(caught.value).startswith((f"QEMU's {option}: ", "--cpu"))


def test_the_page_has_every_option_that_is_known() -> None:
    shown = {words.split()[0].lstrip("-") for words, _ in (*EQUAL, *NONE)}
    assert {*ALONE, *WITH_VALUE, *MISSING} <= shown


def test_no_option_of_pykvms_is_taken_for_one_of_qemus() -> None:
    own = {option.flag for option in OPTIONS} | {option.short for option in OPTIONS}
    qemus = {f"-{name}" for name in (*ALONE, *WITH_VALUE, *MISSING)}
    assert own & qemus == set()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-kernel"], "QEMU's -kernel: a value is missing"),
        (["-append", "--", "x"], "QEMU's -append: a value is missing"),
        (["-kernel", "a", "-kernel", "b", "c", "d"], "unexpected 'd'"),
        (["-accel", "kvm,kernel-irqchip=maybe"], "kernel-irqchip is one of on, off, split"),
        (["-accel", "kvm,thread=multi"], "'thread' has no equal"),
        (["-smp", "two", "a"], "--smp takes a number, not 'two'"),
    ],
)
def test_wrong_values(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert message in str(caught.value)


def test_two_dashes_do_as_well() -> None:
    assert parsed("--nographic --no-reboot guest.elf") == parsed("guest.elf")


def test_a_kernel_beside_firmware_is_what_it_boots() -> None:
    options = parse(["-bios", "rom", "-kernel", "bzImage"])
    assert (options.guest, options.config) == ("rom", {"boot": "firmware", "kernel": "bzImage"})
    options = parse(["-kernel", "bzImage", "--", "one"])
    assert (options.guest, options.config, options.arguments) == ("bzImage", {}, ("one",))


@pytest.mark.kvm
def test_a_line_of_qemus_runs(pykvm, guests: Path) -> None:  # type: ignore[no-untyped-def]
    line = "-m 64 -nographic -no-reboot -smp 1 -accel kvm -device isa-debug-exit,iobase=0xf4"
    done = pykvm("-kernel", guests / "hello.elf", *line.split())
    assert done.stdout == "Hello from long mode!\n"
    assert done.returncode == 1  # (0 << 1) | 1, as QEMU has it
    done = pykvm(guests / "hello.elf", "-hda", "disk.img")
    assert done.returncode == 2
    assert "there is no disk yet" in done.stderr
    assert "docs/from-qemu.md" in done.stderr
