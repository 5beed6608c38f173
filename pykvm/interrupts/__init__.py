"""Interrupt controllers in software: what a PC has between its devices and its processors.

They know a clock, interrupt lines and each other's messages, never KVM.  Nothing that a guest does
to one raises anything but `GpFault`, or makes it keep more than a fixed amount of memory.
"""

from __future__ import annotations

from pykvm.interrupts.apicbus import ApicBus
from pykvm.interrupts.lapic import CpuPort, LocalApic
from pykvm.interrupts.lapic_registers import GpFault
from pykvm.interrupts.message import Message

__all__ = ["ApicBus", "CpuPort", "GpFault", "LocalApic", "Message"]
