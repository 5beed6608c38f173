"""A device that lives in the kernel (KVM_CREATE_DEVICE)."""

from __future__ import annotations

from pykvm.kvm.handle import Attributes

__all__ = ["Device"]


class Device(Attributes):
    """An in-kernel device, made by `VM.create_device`; it is driven through its attributes.

    `type` is its KVM_DEV_TYPE_...: on x86, KVM_DEV_TYPE_VFIO.
    """

    def __init__(self, fd: int, type: int) -> None:
        super().__init__(fd, "KVM device")
        self.type = type
