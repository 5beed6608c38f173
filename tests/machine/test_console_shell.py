"""How a shell is made to run a command: what is typed, tried with a shell of the host's."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.machine.console import shell_line


def answer(command: str) -> tuple[int, str]:
    """What a shell says to it, between the marks, and whether the line itself holds one."""
    line = shell_line(command, "7.1f")
    assert "<7.1f" not in line
    said = subprocess.run(
        ["sh"], input=line + "\n", capture_output=True, text=True, timeout=60, check=True
    ).stdout
    found = re.fullmatch(r"<7\.1f>\n((?:.|\n)*)<7\.1f:(\d+)>\n", said)
    assert found, said
    return int(found[2]), found[1]


@pytest.mark.parametrize(
    ("command", "status", "output"),
    [
        ("echo hello", 0, "hello\n"),
        ("printf hello", 0, "hello"),
        ("false", 1, ""),
        ("sh -c 'exit 42'", 42, ""),
        ("echo 'it''s'; echo \"$((6*7))\"", 0, "its\n42\n"),
        ("echo one\necho two", 0, "one\ntwo\n"),
        ("echo x # a comment", 0, "x\n"),
        ("for i in 1 2; do echo $i; done", 0, "1\n2\n"),
        ("cat <<END\nhere\nEND", 0, "here\n"),
        ("true;", 0, ""),
        ("", 0, ""),
        ("echo '# '", 0, "# \n"),
    ],
)
def test_a_command(command: str, status: int, output: str) -> None:
    assert answer(command) == (status, output)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_characters="\x7f")))
def test_any_text_comes_back(said: str) -> None:
    import shlex

    if said.encode().isascii() or not any(128 <= ord(one) < 160 for one in said):
        assert answer(f"printf %s {shlex.quote(said)}") == (0, said)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("printf '\x03'", r"'\\x03' cannot be typed"),
        ("ls\tx", r"'\\t' cannot be typed"),
        ("echo " + "x" * 4096, "longer than the 4095 bytes"),
    ],
)
def test_what_cannot_be_typed(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shell_line(command, "1")
