"""What a person is told when a guest file, a value or the host is no good."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from boot.elfs import Part, elf

import pykvm as pykvm_package
from pykvm import MachineConfig
from pykvm.cli import main
from pykvm.cli.options import OPTIONS, spell
from pykvm.descriptor import Descriptor

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]

EM_AARCH64 = 183


@pytest.fixture
def refused(pykvm: Pykvm, tmp_path: Path) -> Callable[..., str]:
    """Run a guest of these bytes; what is said on stderr, where the status is 2 and no more."""

    def run(image: bytes, *options: str) -> str:
        path = tmp_path / "guest.elf"
        path.write_bytes(image)
        done = pykvm(*options, path)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    return run


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (elf()[:10], "ELF header is truncated: the file has 10 bytes, 20 are needed"),
        (elf()[:40], "ELF header is truncated: the file has 40 bytes, 64 are needed"),
        (elf()[:100], "1 program headers (e_phnum) at 0x40 (e_phoff) end at 0x78, past the end"),
        (elf()[:-1], "segment 0 ends at file offset 0x79"),
        (elf(machine=EM_AARCH64), "AArch64"),
        (elf(entry=0x20_0000), "0x200000"),
        (elf(Part(), Part()), "overlap"),
    ],
    ids=["ident", "header", "program headers", "segment", "machine", "entry", "overlap"],
)
def test_a_file_that_is_no_good(refused: Callable[..., str], image: bytes, line: str) -> None:
    told = refused(image)
    assert told.startswith("pykvm: guest.elf: ")
    assert line in told


@pytest.mark.kvm
def test_a_segment_outside_memory_and_what_to_do(refused: Callable[..., str]) -> None:
    assert refused(elf(Part(vaddr=0x800_0000)), "--memory", "64M") == (
        "pykvm: guest.elf: segment 0 (0x8000000-0x8000001) lies outside guest memory (64 MiB)\n"
        "       give the guest more memory (--memory 256M) or link it lower\n"
    )


@pytest.mark.kvm
@pytest.mark.parametrize("count", ["0", "10000"])
def test_a_number_of_vcpus_that_no_host_has(refused: Callable[..., str], count: str) -> None:
    told = refused(elf(), "--smp", count)
    assert told.startswith(f"pykvm: --smp {count}: a machine has at least one, and this host's KVM")


@pytest.mark.parametrize("size", ["0", "0M"])
def test_no_memory(refused: Callable[..., str], size: str) -> None:
    assert "--memory takes a size above zero" in refused(elf(), "--memory", size)


@pytest.mark.kvm
def test_more_memory_than_the_host_has(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--memory", "4T", guests / "hello.elf")
    assert (done.returncode, done.stdout) == (126, "")
    # On a small host what lies below 4 GiB is too much by itself.
    wanted = "pykvm: (4 TiB|3 GiB) of guest memory asked for, but the host has "
    assert re.match(wanted, done.stderr), done.stderr


@pytest.mark.parametrize("command", ["run", "step"])
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOENT, "modprobe kvm_intel"), (errno.EACCES, "usermod -aG kvm")]
)
def test_no_kvm_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    number: int,
    advice: str,
) -> None:
    host_open = Descriptor.open

    def refuse(path: Any, flags: int) -> Descriptor:
        if path == "/dev/kvm":
            raise OSError(number, os.strerror(number))
        return host_open(path, flags)

    monkeypatch.setattr(Descriptor, "open", refuse)
    path = tmp_path / "guest.elf"
    path.write_bytes(elf())
    assert main([command, str(path)]) == 126
    out, told = capfd.readouterr()
    assert out == ""
    line, hint = told.splitlines()
    assert line == f"pykvm: cannot open /dev/kvm: {os.strerror(number)}"
    assert hint.startswith("       ")
    assert advice in hint


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            ["--clock", "warp", "--irqchip", "kernel"],
            "--clock warp does not go with --irqchip kernel: the kernel's timers skip no time\n"
            "       --irqchip user has all of them in software",
        ),
        (["--load-address", "0x100000", "--memory", "64K"], "(--memory 2M)"),
        (["--memory", "4000G"], "ask for less (--memory)\n"),
        (["--memory", "5K"], "write it with a unit: --memory 64M\n"),
    ],
)
def test_advice_names_options_of_the_command_line(
    pykvm: Pykvm, tmp_path: Path, options: list[str], advice: str
) -> None:
    (tmp_path / "guest").write_bytes(b"\xf4")
    done = pykvm(tmp_path / "guest", *options, "--mode", "long")
    assert done.returncode in {2, 126}
    assert advice in done.stderr
    assert "=" not in done.stderr


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the package outside the command line, and where it is."""
    package = Path(pykvm_package.__file__).parent
    for path in package.rglob("*.py"):
        if "cli" not in path.relative_to(package).parts:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path}:{node.lineno}", node


def said_to_all(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of an expression but for what only a program is told."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "in_python"
    ):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from said_to_all(child)


def test_hints_outside_the_command_line_ask_how_an_option_is_written() -> None:
    flags = {option.flag for option in OPTIONS}
    # Those that the command line has; what only a program can do is spelled as Python has it.
    fields = set(MachineConfig.__fields__) - {"image", "devices", "args", "tsc_khz"}
    for place, call in calls():
        for keyword in call.keywords:
            if keyword.arg == "hint":
                for part in said_to_all(keyword.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        words = set(re.findall(r"--[a-z-]+", part.value))
                        assert not words & flags, place
                        keywords = set(re.findall(r"\b([a-z_]+)=", part.value))
                        assert not keywords & fields, place


def test_the_command_line_has_every_option_that_advice_names() -> None:
    flags = {option.flag for option in OPTIONS}
    named = [
        call.args[0].value
        for _, call in calls()
        if isinstance(call.func, ast.Name)
        and call.func.id == "option"
        and isinstance(call.args[0], ast.Constant)
    ]
    assert "memory" in named
    assert {str(name) for name in named if spell(str(name), None) not in flags} == set()
