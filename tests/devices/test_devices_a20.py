"""How boot sectors open the A20 gate: each way, and what they read back of it."""

from __future__ import annotations

import pytest

from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

# Each ends with what it read of the gate in AL, bit 1.
WAYS = {
    "port 0x92": """
        E4 92           in al, 0x92
        0C 02           or al, 2
        24 FE           and al, 0xfe
        E6 92           out 0x92, al
        E4 92           in al, 0x92
    """,
    "port 0x92, shut": """
        B0 00           mov al, 0
        E6 92           out 0x92, al
        E4 92           in al, 0x92
    """,
    "output port": """
        B0 D1           mov al, 0xd1
        E6 64           out 0x64, al
        B0 DF           mov al, 0xdf
        E6 60           out 0x60, al
        B0 D0           mov al, 0xd0
        E6 64           out 0x64, al
        E4 64           in al, 0x64
        A8 01           test al, 1
        74 FA           jz $-4
        E4 60           in al, 0x60
    """,
    "command 0xdd, shut": """
        B0 DD           mov al, 0xdd
        E6 64           out 0x64, al
        B0 D0           mov al, 0xd0
        E6 64           out 0x64, al
        E4 60           in al, 0x60
    """,
    "command 0xdf": """
        B0 DF           mov al, 0xdf
        E6 64           out 0x64, al
        B0 D0           mov al, 0xd0
        E6 64           out 0x64, al
        E4 60           in al, 0x60
    """,
}
# The usual test: the word at 0000:7DFE again through FFFF:7E0E, a MiB higher.
CHECK = """
    24 02               and al, 2
    88 C3               mov bl, al
    31 C0               xor ax, ax
    8E D8               mov ds, ax
    F7 D0               not ax
    8E C0               mov es, ax
    C7 06 FE 7D 34 12   mov word [0x7dfe], 0x1234
    26 C7 06 0E 7E 78 56    mov word [es:0x7e0e], 0x5678
    81 3E FE 7D 34 12   cmp word [0x7dfe], 0x1234
    0F 94 C0            sete al
    08 D8               or al, bl
    E6 F4               out 0xf4, al
"""


@pytest.mark.parametrize("way", WAYS)
def test_the_gate_reads_as_it_was_set_and_is_open(guest: MakeGuest, way: str) -> None:
    result = guest(WAYS[way] + CHECK, memory="2M").run(timeout=20)
    shut = "shut" in way
    assert result.exit_code == (1 if shut else 3), result
