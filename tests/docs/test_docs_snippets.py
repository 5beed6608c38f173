"""The snippets of the documentation do what the pages say.

The ```python blocks of a page run in order, as one program, from the top of the source tree; what
they define as test_... is called.  A ```text block right after one is what it prints.  Each
```console block is a shell session; a `make` that is more than a pykvm command is only looked up.
So are commands that stand elsewhere: pykvm has to understand their options.
In expected output addresses and times count for nothing, and "..." stands for anything.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from doctest import ELLIPSIS, OutputChecker
from itertools import zip_longest
from pathlib import Path

import pytest
from docs.markdown import ROOT, Block, blocks, pages, prose

from pykvm import Machine, Result
from pykvm.cli.options import parse
from pykvm.cli.status import UsageError
from support.linux import DEADLINE, Linux
from support.quirks import without
from support.slowness import longer

PAGES = [page.relative_to(ROOT).as_posix() for page in pages()]
WITH_PYTHON = [page for page in PAGES if any(b.language == "python" for b in blocks(page))]
SESSIONS = [block for page in PAGES for block in blocks(page) if block.language == "console"]

VARYING = (
    (r"\b0x[0-9a-f]+", "0x"),
    (r"\b\d+\.\d+ (s|ms|µs)\b", "0 s"),
    (r"\b\d+ VM exits?\b", "0 VM exits"),
)

# A session with this in it boots Linux.
LINUX = "guests/build/linux/"

# What a session shows as typed at the prompt of `pykvm step`.
TYPED = re.compile(r"^step> (.*\n)", re.MULTILINE)

# Printed between one command's output and the next one's; the next one sees the same $?.
MARK = "--8<--\n"
END_OF_STEP = "status=$?; echo '--8<--'; (exit $status)"


def loosely(text: str) -> str:
    """Without what differs from run to run and from compiler to compiler."""
    for pattern, word in VARYING:
        text = re.sub(pattern, word, text)
    return text


def expect(block: Block, wanted: str, got: str) -> None:
    if not OutputChecker().check_output(loosely(wanted), loosely(got), ELLIPSIS):
        assert got == wanted, f"{block} shows something else"


def programs(page: str) -> Iterator[tuple[Block, Block | None]]:
    """The Python blocks of a page, each with the block of its output, if it has one."""
    found = blocks(page)
    for block, after in zip_longest(found, found[1:]):
        if block.language == "python":
            yield block, after if after is not None and after.language == "text" else None


def execute(block: Block, namespace: dict[str, object]) -> None:
    # Tracebacks then name the page and its line.
    code = compile("\n" * (block.line - 1) + block.text, ROOT / block.page, "exec")
    before = set(namespace)
    exec(code, namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test_") and name not in before and callable(value):
            value()


def more_time(run: Callable[..., Result]) -> Callable[..., Result]:
    """`Machine.run` with the time limits that a slow host needs."""

    def slowly(machine: Machine, timeout: float | None = None, **options: object) -> Result:
        return run(machine, None if timeout is None else longer(timeout), **options)

    return slowly


@pytest.fixture(autouse=True)
def saved_files() -> Iterator[None]:
    """Take away the snapshots and guests that a page makes."""

    def made() -> set[Path]:
        return {*ROOT.glob("*.pykvm"), *ROOT.glob("*.bin")}

    before = made()
    yield
    for path in made() - before:
        path.unlink()


@pytest.mark.kvm
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python(
    page: str, guests: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Machine, "run", more_time(Machine.run))
    namespace: dict[str, object] = {"__name__": page}
    for block, output in programs(page):
        execute(block, namespace)
        printed = capsys.readouterr().out
        expect(output or block, output.text if output else "", printed)


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a session, each with the output that is shown below it."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def dry_run(command: str) -> str:
    """The last thing that a `make` would do."""
    found = subprocess.run(
        [*command.split(), "--dry-run", "--no-print-directory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=longer(50),
        check=True,
    )
    return found.stdout.splitlines()[-1]


def runnable(command: str) -> str | None:
    """What to type for `command` in a test, or None if it is too much to run."""
    if not command.startswith("make"):
        return command
    before, python, arguments = dry_run(command).partition("python -m pykvm ")
    return f"{python}{arguments}" if python and " " not in before else None


def sessions() -> Iterator[object]:
    """Those that do not boot Linux."""
    for block in SESSIONS:
        if LINUX not in block.text:
            explains = "triple fault: " in block.text
            yield pytest.param(block, id=str(block), marks=[without("triple-fault")] * explains)


@pytest.mark.kvm
@pytest.mark.parametrize("block", list(sessions()))
def test_console(block: Block, guests: Path) -> None:
    shows_what_it_says(block, timeout=longer(50))


@pytest.mark.kvm
@pytest.mark.timeout(DEADLINE + 20)
@pytest.mark.parametrize("block", [b for b in SESSIONS if LINUX in b.text], ids=str)
def test_console_that_boots_linux(block: Block, linux: Linux) -> None:
    shows_what_it_says(block, timeout=DEADLINE)


def shows_what_it_says(block: Block, timeout: float) -> None:
    session = commands(block)
    steps = [runnable(command) for command, _ in session]
    ran = subprocess.run(
        # Unlike subprocess, timeout(1) ends what the shell has started, too.
        [
            *("timeout", f"{timeout:g}", "bash", "-c"),
            "".join(f"{step or ':'}\n{END_OF_STEP}\n" for step in steps),
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        input="".join(TYPED.findall(block.text)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    shown = ran.stdout.split(MARK)
    assert len(shown) == len(session) + 1, ran.stdout
    for (_, wanted), step, got in zip(session, steps, shown, strict=False):
        if step is not None:
            expect(block, wanted, got)


def other_commands(page: str) -> list[str]:
    """Commands in a page's prose: on lines of their own, and `python -m pykvm ...` in between."""
    text = prose(page)
    own = re.findall(r"^    python -m (pykvm .*)$", text, re.MULTILINE)
    return own + re.findall(r"`(?:python -m )?(pykvm -[^`]*)`", text)


OTHER = [(page, command) for page in PAGES for command in other_commands(page)]


@pytest.mark.parametrize(("page", "command"), OTHER)
def test_a_command_that_is_not_run_is_understood(page: str, command: str) -> None:
    parse(shlex.split(command.removesuffix("\\"))[1:])


def test_a_command_that_is_not_understood_is_seen() -> None:
    assert len(OTHER) > 5
    with pytest.raises(UsageError, match="--modul"):
        parse(shlex.split("guest.elf --modul x"))


@pytest.mark.parametrize("page", PAGES)
def test_make_has_the_targets_that_are_named(page: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`make ([a-z][\w-]*)[^`]*`", prose(page))
    assert set(named) <= set(targets)


def test_a_snippet_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        execute(Block("README.md", 1, "python", "def test_it():\n    assert False\n"), {})
    with pytest.raises(AssertionError, match="shows something else"):
        expect(Block("README.md", 1, "text", ""), "one ... three\n", "one two four\n")
    expect(
        Block("README.md", 1, "text", ""), "at 0x10 ... 0.1 s\n", "at 0x2f (main) after 0.25 s\n"
    )
