"""MSR exits that several parts of a machine want, made into one filter."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pykvm.vcpu.msr_exits import MsrExits

READ, WRITE = 1, 2


class Recorder:
    """Keeps what KVM was told."""

    def __init__(self) -> None:
        self.capabilities: list[tuple[int, ...]] = []
        self.filter: list[tuple[int, int, int, bytes]] = []

    def enable_cap(self, cap: int, /, *args: int) -> int:
        self.capabilities.append((cap, *args))
        return 0

    def set_msr_filter(self, ranges: Iterable[tuple[int, int, int, bytes]], /) -> None:
        self.filter = list(ranges)


@pytest.mark.parametrize(("unknown", "reasons"), [(False, 4), (True, 5)])
def test_the_reasons_to_exit(unknown: bool, reasons: int) -> None:
    told = Recorder()
    MsrExits(told, unknown=unknown)
    assert told.capabilities == [(188, reasons)]


def test_owners_add_up_and_each_withdraws_its_own() -> None:
    told = Recorder()
    exits = MsrExits(told)
    exits.ask("clock", reads=[0x10], writes=[0x10, 0x3B])
    exits.ask("syscall", writes=[0xC0000082, 0x3B])
    # One MSR a range, so that none hides its neighbour.
    assert told.filter == [
        (READ | WRITE, 0x10, 1, bytes(8)),
        (WRITE, 0x3B, 1, bytes(8)),
        (WRITE, 0xC0000082, 1, bytes(8)),
    ]
    exits.ask("clock")
    assert [index for _, index, _, _ in told.filter] == [0xC0000082, 0x3B]
    exits.ask("syscall")
    assert told.filter == []
