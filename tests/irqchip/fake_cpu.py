"""A vCPU that runs nothing: its kvm_run page, and what was asked of it and of KVM."""

from __future__ import annotations

from typing import Any

from pykvm.x86.state import reset

# struct kvm_run
REQUEST_WINDOW = 0
READY = 12
IF_FLAG = 13
CR8 = 16


class FakeKvm:
    """Writes down what is injected: ``["nmi", 0x31]``."""

    def __init__(self) -> None:
        self.injected: list[object] = []

    def interrupt(self, vector: int) -> None:
        self.injected.append(vector)

    def nmi(self) -> None:
        self.injected.append("nmi")


class FakeCpu:
    """A `pykvm.vcpu.CPU` as an `Injector` and a `Timekeeper` see it."""

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.parked = index != 0
        self.page = bytearray(4096)
        self.kvm = FakeKvm()
        self.attended = 0
        self.heeded = 0
        self.alarms: list[int | None] = []
        self.state: Any = reset()
        self.can_reset = False
        self.inits = 0

    def reset_by_init(self) -> None:
        self.inits += 1
        self.state = reset()

    def attend(self) -> None:
        self.attended += 1

    def heed(self) -> None:
        self.heeded += 1

    def set_alarm(self, when: int | None) -> None:
        self.alarms.append(when)

    def leave(self, *, ready: bool = True, interrupts_on: bool = True, cr8: int = 0) -> None:
        """Leave the guest with these in the page."""
        self.page[READY] = ready
        self.page[IF_FLAG] = interrupts_on
        self.page[CR8] = cr8
