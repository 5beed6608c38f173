"""A test rig in one file: pytest tests guests.

Run it:  python examples/07_pytest.py    (or: pytest examples/07_pytest.py)

`make venv` installs pytest, `make run` does not: pip install pytest.

A fixture boots the guest and closes it afterwards; tests talk to it and read its memory.  `check`
raises unless the run ended as asked: by what it waited for, else with exit code 0.  The `Result`
has more: the last test shows five ways in which a run ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from pykvm import Machine, Outcome

try:
    import pytest
except ModuleNotFoundError:
    sys.exit("This example needs pytest: pip install pytest")

GUESTS = Path(__file__).parents[1] / "guests" / "build"

Boot = Callable[..., Machine]


@pytest.fixture
def boot() -> Iterator[Boot]:
    """Start a guest by its file's name; the other arguments go to Machine."""
    with ExitStack() as stack:
        yield lambda name, **options: stack.enter_context(Machine(GUESTS / name, **options))


def test_it_says_hello(boot: Boot) -> None:
    machine = boot("hello.elf")
    machine.run(timeout=10).check()
    assert machine.serial.text == "Hello from long mode!\n"


def test_it_echoes_what_it_is_sent(boot: Boot) -> None:
    machine = boot("echo.elf")
    machine.run(timeout=10, until="just q.\n").check()
    machine.serial.send("marco\n")
    machine.run(timeout=10, until="marco\n", fail="polo").check()


def test_its_arguments_are_in_its_memory(boot: Boot) -> None:
    machine = boot("args.elf", args=["needle"])
    found = machine.memory.find(b"needle\0")
    assert found is not None
    machine.memory.write(found, b"thread")
    assert machine.run(timeout=10).exit_code == 1
    assert "argv[1] = thread\n" in machine.serial.text


@pytest.mark.parametrize(
    ("name", "timeout", "outcome", "story"),
    [
        ("hello.elf", 10, Outcome.EXITED, "the guest exited with code 0"),
        ("halt.elf", 10, Outcome.HALTED, "the guest halted with nothing to wake it"),
        ("busy.elf", 0.1, Outcome.TIMEOUT, "the guest was still running after 0.1 s"),
        ("triple.elf", 10, Outcome.CRASHED, "the guest crashed: triple fault: #UD"),
        ("wild.elf", 10, Outcome.CRASHED, "the guest crashed: wild access: the guest wrote"),
    ],
)
def test_five_endings(boot: Boot, name: str, timeout: float, outcome: Outcome, story: str) -> None:
    result = boot(name).run(timeout=timeout)
    assert result.outcome is outcome
    assert result.sentence.startswith(story)


if __name__ == "__main__":
    if not GUESTS.exists():
        sys.exit("Build the guests first: make guests")
    # Without the settings of pykvm's own tests, which make every warning an error.
    sys.exit(pytest.main(["-q", "-c", os.devnull, "-p", "no:cacheprovider", __file__]))
