"""Talking to Linux's shell: commands with status and output, prompts, another thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pykvm import Machine, RunTimeout
from support.booted import at_the_shell
from support.linux import DEADLINE, Linux
from support.slowness import longer

pytestmark = pytest.mark.timeout(3 * DEADLINE)

LIMIT = longer(60)


@pytest.fixture(scope="module")
def machine(linux: Linux) -> Iterator[Machine]:
    with Machine.from_snapshot(at_the_shell(linux)) as machine:
        machine.serial.prompt = "# "
        yield machine


def test_commands(machine: Machine) -> None:
    run = machine.serial.run_command
    assert run("echo hello", LIMIT) == (0, "hello\n")
    assert run("false", LIMIT) == (1, "")
    assert run("printf 'no newline'", LIMIT) == (0, "no newline")
    status, output = run("uname -s; uname -m", LIMIT)
    assert (status, output) == (0, "Linux\nx86_64\n")
    assert run("echo one\necho two  # and no more", LIMIT) == (0, "one\ntwo\n")
    assert run("echo '~ # '; sh -c 'exit 3'", LIMIT) == (3, "~ # \n")
    assert run("x=" + "y" * 200 + "; echo $x", LIMIT) == (0, "y" * 200 + "\n")


def test_a_prompt_inside_the_output_is_none(machine: Machine) -> None:
    machine.serial.sendline("echo 'a # b'; echo 'c # d'")
    said = machine.serial.expect_prompt(timeout=LIMIT)
    assert "a # b" in said.before
    assert "c # d" in said.before


def test_a_command_that_takes_too_long(machine: Machine) -> None:
    saved = machine.snapshot()
    with pytest.raises(RunTimeout, match="awaited: '<"):
        machine.serial.run_command("sleep 1000", longer(2))
    machine.reset(saved)
    assert machine.serial.run_command("echo again", LIMIT) == (0, "again\n")
