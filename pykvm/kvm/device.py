"""A device that lives in the kernel (KVM_CREATE_DEVICE)."""

from __future__ import annotations

from pykvm.kvm.handle import Attributes
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.descriptor import Descriptor

__all__ = ["Device"]


class Device(Attributes):
    """An in-kernel device, made by `VM.create_device`; it is driven through its attributes.

    `type` is its KVM_DEV_TYPE_...: on x86, KVM_DEV_TYPE_VFIO.
    """

    def __init__(self, descriptor: Descriptor, type: int, *, warns: bool = True) -> None:
        super().__init__(descriptor, "KVM device", warns=warns)
        self.type = type
