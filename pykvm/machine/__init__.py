"""A machine: put together by its options, run to an end, looked at and closed."""

from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine

__all__ = ["Machine", "MachineConfig"]
