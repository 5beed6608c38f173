"""Who gets an interrupt message: the bus between local APICs and I/O APICs (SDM 3A 11.6.2)."""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.interrupts.message import (
    FIXED,
    LOWEST_PRIORITY,
    SHORTHAND_NONE,
    SHORTHAND_OTHERS,
    SHORTHAND_SELF,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.interrupts.lapic import LocalApic
    from pykvm.interrupts.message import Message

__all__ = ["ApicBus"]

BROADCAST = 0xFF
X2APIC_BROADCAST = 0xFFFF_FFFF


class ApicBus:
    """Takes each message to the local APICs that it addresses.

    `lapics` are all of them, in the order of their processors.  `send` is what a `LocalApic` wants
    for its own messages, `deliver` what everyone else does; both may be called from any thread.

    A lowest-priority message goes to one of the software-enabled APICs that it addresses: the one
    at place (vector mod their number), as KVM chooses.  The manual's arbitration by processor
    priority (11.6.2.4) is model-specific, and processors have long hashed the vector as well.
    """

    __slots__ = ("_lock", "lapics")

    def __init__(self, lapics: Iterable[LocalApic] = ()) -> None:
        self._lock = allocate_lock()
        self.lapics: tuple[LocalApic, ...] = tuple(lapics)

    def add(self, lapic: LocalApic) -> None:
        """Let messages reach `lapic` too."""
        with self._lock:
            self.lapics = (*self.lapics, lapic)

    def send(self, source: LocalApic, message: Message) -> None:
        """Deliver a message of `source`'s interrupt command register."""
        self.deliver(message, source)

    def deliver(self, message: Message, source: LocalApic | None = None) -> bool:
        """Deliver `message`; without `source` it comes from an I/O APIC or is an MSI.

        Returns whether any local APIC took it.
        """
        targets = self.targets(message, source)
        if message.mode == LOWEST_PRIORITY and len(targets) > 1:
            if self._is_broadcast(message, source) and not message.logical:
                # KVM's way with a combination that the manual rules out (table 11-3).
                message = message._replace(mode=FIXED)
            else:
                targets = self._lowest_priority(message, targets)
        taken = [lapic.receive(message) for lapic in targets]
        return any(taken)

    def targets(self, message: Message, source: LocalApic | None = None) -> list[LocalApic]:
        """The APICs that `message` addresses.  One disabled by its base register hears nothing."""
        shorthand = message.shorthand
        if shorthand == SHORTHAND_SELF:
            return [] if source is None else [source]
        listening = [lapic for lapic in self.lapics if lapic.enabled]
        if shorthand == SHORTHAND_OTHERS:
            return [lapic for lapic in listening if lapic is not source]
        if shorthand != SHORTHAND_NONE or self._is_broadcast(message, source):
            return listening
        destination, logical = message.destination, message.logical
        return [
            lapic
            for lapic in listening
            if lapic.answers_to(destination, logical)
            or (destination == BROADCAST and not lapic.x2apic)
        ]

    def _is_broadcast(self, message: Message, source: LocalApic | None) -> bool:
        """Whether every APIC is meant: 0xff, or with 32-bit destinations all ones."""
        if message.shorthand != SHORTHAND_NONE:
            return False
        if message.destination == X2APIC_BROADCAST:
            return True
        return message.destination == BROADCAST and not (source is not None and source.x2apic)

    def _lowest_priority(self, message: Message, targets: list[LocalApic]) -> list[LocalApic]:
        able = [lapic for lapic in targets if lapic.software_enabled]
        return [able[message.vector % len(able)]] if able else []
