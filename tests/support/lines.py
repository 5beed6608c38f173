"""Interrupt lines that remember what was done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm._core import ffi, lib

if TYPE_CHECKING:
    from pykvm.clock import Clock

__all__ = ["InC", "Line", "Lines"]


class Line:
    """Remembers its level and every change.  A device sets a line only to change it."""

    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    @property
    def rises(self) -> int:
        """How often it went high."""
        return sum(self.changes)

    def set(self, level: bool) -> None:
        assert level != self.level, "set without a change"
        self.level = level
        self.changes.append(level)


class Lines:
    """Lines by number, with a log of their changes: guest time, number and level."""

    def __init__(self, clock: Clock, count: int = 1) -> None:
        self.clock = clock
        self.log: list[tuple[int, int, bool]] = []
        self.lines = [_Logged(self, number) for number in range(count)]

    def __getitem__(self, number: int) -> Line:
        return self.lines[number]

    def times(self, number: int = 0) -> list[int]:
        """The guest times at which line `number` rose."""
        return [when for when, line, level in self.log if line == number and level]


class _Logged(Line):
    def __init__(self, lines: Lines, number: int) -> None:
        super().__init__()
        self._lines = lines
        self._number = number

    def set(self, level: bool) -> None:
        super().set(level)
        self._lines.log.append((self._lines.clock.now(), self._number, level))


class InC:
    """A line that C can drive, as those of KVM's own interrupt controllers, which leads nowhere."""

    def __init__(self) -> None:
        lines = ffi.gc(lib.pykvm_lines_new(-1), lib.pykvm_lines_free)
        self.core = ffi.gc(lib.pykvm_line_new(lines, 4), lib.pykvm_line_free)

    def set(self, level: bool) -> None:
        assert lib.pykvm_line_set(self.core, level) == 0

    def restore(self, level: bool) -> None:
        lib.pykvm_line_restore(self.core, level)

    @property
    def changes(self) -> int:
        """How often its level changed."""
        return int(lib.pykvm_line_changes(self.core))

    @property
    def level(self) -> bool:
        return bool(self.changes % 2)

    @property
    def rises(self) -> int:
        """How often it went high."""
        return (self.changes + 1) // 2
