"""A vCPU that runs nothing: its kvm_run page, and what was asked of it and of KVM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pykvm.kvm.run_page import CR8, IF_FLAG
from pykvm.kvm.run_page import READY_FOR_INTERRUPT_INJECTION as READY
from pykvm.kvm.run_page import REQUEST_INTERRUPT_WINDOW as REQUEST_WINDOW
from pykvm.memory import GuestMemory
from pykvm.x86.entry import reset

__all__ = ["CR8", "REQUEST_WINDOW", "FakeCpu"]


class FakeKvm:
    """Writes down what is injected, as ``["nmi", 0x31]``, and what INIT sets."""

    def __init__(self) -> None:
        self.injected: list[object] = []
        self.inits = 0

    def nmi(self) -> None:
        self.injected.append("nmi")

    def get_cpuid2(self) -> list[Any]:
        return []

    def set_debugregs(self, value: Any) -> None:
        self.inits += 1

    def set_vcpu_events(self, value: Any) -> None:
        pass


class FakeCpu:
    """A `pykvm.vcpu.CPU`, and its engine, as an `Injector` and a `UserInterrupts` see them."""

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.parked = index != 0
        self.engine = self
        self.page = bytearray(4096)
        self.kvm = FakeKvm()
        self.memory = GuestMemory()
        self.attended = 0
        self.cleared = 0
        self.alarms: list[int | None] = []
        self.state: Any = reset()
        self.loop = SimpleNamespace(pending=None)

    @property
    def inits(self) -> int:
        """How many INITs were carried out."""
        return self.kvm.inits

    def abandon_instruction(self) -> None:
        pass

    def interrupt(self, vector: int) -> None:
        self.kvm.injected.append(vector)

    def attend(self) -> None:
        self.attended += 1

    def clear_attention(self) -> None:
        self.cleared += 1

    def set_alarm(self, when: int | None) -> None:
        self.alarms.append(when)

    def leave(self, *, ready: bool = True, interrupts_on: bool = True, cr8: int = 0) -> None:
        """Leave the guest with these in the page."""
        self.page[READY] = ready
        self.page[IF_FLAG] = interrupts_on
        self.page[CR8] = cr8
