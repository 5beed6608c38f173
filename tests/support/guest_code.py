"""Guest code that several tests of machines run, and a device for it."""

from __future__ import annotations

from hypothesis import strategies as st

from pykvm import Machine, Mode, Outcome
from pykvm.bus import Placement, Space
from support.listing import assemble

__all__ = ["CODE", "ENDINGS", "EXIT_0", "MIXED", "Ignore", "live", "no_posted"]

EXIT_0 = assemble("""
    B0 00        mov al, 0
    E6 F4        out 0xf4, al
""")
# 200 times round, then a port write, so that a kick meets the guest inside, outside and between.
MIXED = """
    B9 C8 00     mov cx, 200
    E2 FE        loop $
    E6 80        out 0x80, al
    EB F7        jmp $-7
"""

# Instructions that leave the guest, raise faults or change modes, more often than chance brings.
SHARP = [
    *(b"\xf4", b"\xcc", b"\xcd\x80", b"\xcf", b"\x0f\x0b", b"\xfa", b"\xfb", b"\xf3\x6c"),
    *(b"\xf3\x6e", b"\xe6\x80", b"\xe4\x60", b"\xee", b"\xec", b"\xef", b"\xed", b"\xe7\xe9"),
    *(b"\x0f\x20\xc0", b"\x0f\x22\xc0", b"\x0f\x22\xd8", b"\x0f\x30", b"\x0f\x32", b"\x0f\xa2"),
    *(b"\x0f\x01\x18", b"\x0f\x01\x10", b"\xeb\xfe", b"\xc3", b"\xff\xe0", b"\x8e\xd0", b"\x9b"),
    *(b"\xd9\xe8", b"\x0f\x05", b"\xe6\x64", b"\xe6\xf4", b"\x0f\x09", b"\xf0\xff\x00", b"\x66"),
]
CODE = st.lists(st.one_of(st.sampled_from(SHARP), st.binary(min_size=1, max_size=6)), max_size=60)
#: How a guest may end by itself, or at its time limit.
ENDINGS = set(Outcome) - {Outcome.STOPPED, Outcome.UNTIL}


class Ignore:
    """A device whose every write is an exit to Python."""

    name = "ignore"

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def no_posted() -> list[Placement]:
    return [Placement(Ignore(), Space.PIO, 0x80, 1)]


def live(vcpus: int = 1) -> None:
    """Make a machine, run it to its exit, and close it."""
    with Machine(EXIT_0, mode=Mode.REAL, memory="1M", vcpus=vcpus) as machine:
        assert machine.run(timeout=20).exit_code == 0
