"""A virtual CPU: its state, and the loop that runs it."""

from pykvm.vcpu.cpu import CPU

__all__ = ["CPU"]
