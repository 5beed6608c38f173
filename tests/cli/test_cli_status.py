"""How a run ended: the exit status, and the one line on stderr."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.cli.report import exit_status
from pykvm.result import Ending, Outcome, Result
from support.slowness import longer

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
Flat = Callable[[str], Path]

FIGURES = re.compile(r" \(\d+\.\d{3} s, \d+ VM exits?(, .*)?\)$")

EXIT_300 = """
    BA F4 00             mov dx, 0xf4
    66 B8 2C 01 00 00    mov eax, 300
    66 EF                out dx, eax
"""
EXIT_3 = """
    B0 03    mov al, 3
    E6 F4    out 0xf4, al
"""
SPIN = "EB FE    jmp $"


def piped(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process whose output the test reads."""
    return subprocess.Popen(
        arguments,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(stderr: str) -> str:
    """The line on stderr without its figures."""
    (line,) = [line for line in stderr.splitlines() if line.startswith("pykvm: ")]
    assert FIGURES.search(line), line
    return FIGURES.sub("", line).removeprefix("pykvm: ")


def result(outcome: Outcome, code: int | None = None) -> Result:
    ending = Ending(outcome, "", exit_code=code)
    return Result(ending, exits={}, seconds=0.0, guest_seconds=0.0, outside_seconds=0.0)


@pytest.mark.parametrize(
    ("outcome", "code", "guest", "qemu"),
    [
        (Outcome.EXITED, 0, 0, 1),
        (Outcome.EXITED, 1, 1, 3),
        (Outcome.EXITED, 124, 124, 249),
        (Outcome.EXITED, 127, 127, 255),
        (Outcome.EXITED, 128, 128, 1),
        (Outcome.EXITED, 255, 255, 255),
        (Outcome.EXITED, 256, 255, 1),
        (Outcome.HALTED, None, 0, 0),
        (Outcome.RESET, None, 0, 0),
        (Outcome.TIMEOUT, None, 124, 124),
        (Outcome.CRASHED, None, 125, 125),
    ],
)
def test_exit_status_of_each_outcome(
    outcome: Outcome, code: int | None, guest: int, qemu: int
) -> None:
    assert exit_status(result(outcome, code))[0] == guest
    assert exit_status(result(outcome, code), "qemu")[0] == qemu


def test_a_code_that_no_process_can_give_is_told() -> None:
    assert exit_status(result(Outcome.EXITED, 300))[1] == "exit status 255, the largest there is"
    assert exit_status(result(Outcome.EXITED, 255))[1] == ""


@pytest.mark.kvm
def test_a_guest_that_exits_with_0(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "hello.elf")
    assert (done.returncode, done.stdout) == (0, "Hello from long mode!\n")
    assert told(done.stderr) == "the guest exited with code 0"


@pytest.mark.kvm
def test_run_as_a_first_word_changes_nothing(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("run", guests / "hello16.bin")
    assert (done.returncode, done.stdout) == (0, "Hello from real mode!\n")


@pytest.mark.kvm
def test_guest_arguments_and_its_own_code(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--append", "one two", guests / "args.elf", "--", "--three", "f o u r")
    assert done.returncode == 4
    assert done.stdout.splitlines()[2:] == [
        "argv[1] = one",
        "argv[2] = two",
        "argv[3] = --three",
        "argv[4] = f o u r",
    ]
    assert told(done.stderr) == "the guest exited with code 4"


@pytest.mark.kvm
def test_code_above_255(pykvm: Pykvm, flat: Flat) -> None:
    done = pykvm(flat(EXIT_300))
    assert done.returncode == 255
    assert "the guest exited with code 300 (" in done.stderr
    assert "exit status 255, the largest there is" in done.stderr


@pytest.mark.kvm
def test_the_other_vcpus_wait(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--smp", "2", "--memory", "16M", guests / "hello.elf")
    assert (done.returncode, done.stdout) == (0, "Hello from long mode!\n")


@pytest.mark.kvm
def test_qemus_status(pykvm: Pykvm, flat: Flat) -> None:
    assert pykvm("--exit-status", "qemu", flat(EXIT_3)).returncode == 7


@pytest.mark.kvm
def test_timeout_says_where_the_guest_was(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--timeout", "0.2", guests / "busy.elf")
    assert done.returncode == 124
    assert re.fullmatch(
        r"the guest was still running after 0\.2 s at 0x[0-9a-f]+ \(main\+0x[0-9a-f]+\)",
        told(done.stderr),
    )


@pytest.mark.kvm
@pytest.mark.parametrize("serial", ["stdio", "pty", "unix:SOCKET"])
def test_the_longest_time_limit(pykvm: Pykvm, guests: Path, tmp_path: Path, serial: str) -> None:
    """More milliseconds than poll(2) takes, and all the nanoseconds of a timer."""
    serial = serial.replace("SOCKET", str(tmp_path / "socket"))
    for seconds in ("2147484", "1000000000"):
        done = pykvm("--timeout", seconds, "--serial", serial, guests / "hello.elf")
        assert done.returncode == 0, done.stderr


@pytest.mark.kvm
def test_where_several_vcpus_were_and_the_console_that_is_elsewhere(
    pykvm: Pykvm, guests: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    done = pykvm("--smp", "2", "--timeout", "0.5", "--serial", f"file:{log}", guests / "busy.elf")
    assert done.returncode == 124
    first, *lines = done.stderr.splitlines()
    assert first.startswith("pykvm: the guest was still running after 0.5 s (")
    assert re.fullmatch(r" *vCPU 0 is at 0x[0-9a-f]+ \(main\+0x[0-9a-f]+\)", lines[0])
    assert [line.strip() for line in lines[1:]] == ["vCPU 1 is parked", "spinning in ring 0"]


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("triple", [], "the guest crashed: triple fault: "),
        ("badstack", [], "the guest crashed: triple fault: "),
        ("wild", ["store"], "the guest crashed: wild access: the guest wrote ef be ad de at "),
        ("wild", ["load"], "the guest crashed: wild access: the guest read 4 byte(s) at "),
        ("wild", ["jump"], "the guest crashed: "),
    ],
)
def test_crashes(pykvm: Pykvm, guests: Path, name: str, arguments: list[str], words: str) -> None:
    done = pykvm(guests / f"{name}.elf", "--timeout", "5", "--", *arguments)
    assert done.returncode == 125
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.kvm
def test_unclaimed_accesses_may_float(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--unclaimed", "open-bus", guests / "wild.elf", "--", "load")
    assert (done.returncode, "read 0xffffffff" in done.stdout) == (1, True)


@pytest.mark.kvm
def test_halting_for_good_is_an_end_like_any_other(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "halt.elf")
    assert done.returncode == 0
    assert told(done.stderr).startswith("the guest halted with nothing to wake it")


@pytest.mark.kvm
def test_a_reset_is_status_0_and_told(pykvm: Pykvm, flat: Flat) -> None:
    done = pykvm(
        flat("""
            B0 FE    mov al, 0xfe
            E6 64    out 0x64, al
        """)
    )
    assert done.returncode == 0
    assert told(done.stderr).startswith("the guest asked for a reset (keyboard controller")


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "stopped by Ctrl-C at 0x7c00"),
        (signal.SIGTERM, "stopped by SIGTERM at 0x7c00"),
        (signal.SIGHUP, "stopped by SIGHUP at 0x7c00"),
        (signal.SIGQUIT, "stopped by SIGQUIT at 0x7c00"),
    ],
)
def test_signals(
    command: list[str],
    environment: dict[str, str],
    flat: Flat,
    number: signal.Signals,
    words: str,
) -> None:
    spin = flat(f"""
        B0 21    mov al, '!'
        E6 E9    out 0xe9, al
        E6 F0    out 0xf0, al
        {SPIN}
    """)
    arguments = [*command, str(spin), "--unclaimed", "open-bus", "--dump-on-exit"]
    process = piped(arguments, environment)
    with process:
        assert process.stdout is not None
        # The guest runs, so the signal handlers are in place.
        assert process.stdout.read(1) == "!"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=longer(20))
    assert process.returncode == 128 + number
    assert told(stderr.splitlines()[0]).startswith(words[:-2])
    assert "rip=" in stderr


@pytest.mark.kvm
def test_quiet_says_nothing_but_crashes(pykvm: Pykvm, guests: Path, flat: Flat) -> None:
    done = pykvm("-q", guests / "hello.elf")
    assert (done.returncode, done.stderr) == (0, "")
    assert pykvm("-q", flat(EXIT_3)).stderr == ""
    assert "crashed" in pykvm("--quiet", guests / "triple.elf").stderr


@pytest.mark.kvm
def test_the_reader_of_the_output_has_gone(
    command: list[str], environment: dict[str, str], flat: Flat
) -> None:
    chatty = flat("""
        BA F8 03    mov dx, 0x3f8
        B0 79       mov al, 'y'
        EE          out dx, al
        EB FD       jmp $-1
    """)
    process = piped([*command, str(chatty)], environment)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == "y"
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(20)
    assert process.returncode == 128 + signal.SIGPIPE
    assert stderr == "pykvm: stopped: stdout has no reader any more\n"


@pytest.mark.kvm
@pytest.mark.parametrize("way", ["timeout", "signal"])
def test_a_reader_that_sleeps_does_not_keep_the_run_from_ending(
    command: list[str], environment: dict[str, str], flat: Flat, way: str
) -> None:
    chatty = flat("""
        BA F8 03    mov dx, 0x3f8
        B0 79       mov al, 'y'
        B9 FF FF    mov cx, 0xffff
        F3 6E       rep outsb
        EB F9       jmp $-5
    """)
    limits = ["--timeout", "1"] if way == "timeout" else []
    process = piped([*command, str(chatty), *limits], environment)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        if way == "signal":
            process.send_signal(signal.SIGTERM)
        # Not communicate: stdout may have no reader.
        assert process.wait(20) == (124 if way == "timeout" else 143)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pykvm: no guest file given (pykvm --help shows what there is)\n"),
        (["--nonsense"], "pykvm: unknown option --nonsense (pykvm --help shows what there is)\n"),
        (["nowhere.elf"], "pykvm: nowhere.elf: cannot be read: No such file or directory\n"),
    ],
)
def test_wrong_use_is_one_line(pykvm: Pykvm, arguments: list[str], message: str) -> None:
    done = pykvm(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.kvm
@pytest.mark.parametrize(
    "arguments",
    [["--smp", "0"], ["--smp", "10000"], ["--memory", "100B"], ["--serial", "file:/nowhere/x"]],
)
def test_values_that_make_no_sense(pykvm: Pykvm, guests: Path, arguments: list[str]) -> None:
    done = pykvm(*arguments, guests / "hello.elf")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pykvm: ")
    assert "Traceback" not in done.stderr


def test_files_that_are_no_guests(pykvm: Pykvm, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Dear guest,\n")
    done = pykvm(tmp_path / "notes.txt")
    assert done.returncode == 2
    assert done.stderr.startswith("pykvm: notes.txt: is ")


@pytest.mark.kvm
def test_more_memory_than_the_host_has(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--memory", "4T", guests / "hello.elf")
    assert done.returncode == 126
    assert done.stderr.startswith("pykvm: ")


@pytest.mark.kvm
def test_traceback_on_request(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("--memory", "4T", guests / "hello.elf", PYKVM_TRACEBACK="1")
    assert done.returncode == 126
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(("pykvm: ", "       "))


def test_help_and_version(pykvm: Pykvm) -> None:
    done = pykvm("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: pykvm [run] GUEST" in done.stdout
    done = pykvm("--version")
    assert re.fullmatch(r"pykvm \d+\.\d+\.\d+\n", done.stdout)
