"""Reading and writing MSRs, which /dev/kvm (feature MSRs) and vCPUs do the same way."""

from __future__ import annotations

from errno import EINVAL

from pykvm.errors import KVMError
from pykvm.kvm import uapi
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pykvm.kvm.handle import Handle

__all__ = ["read_msrs", "write_msrs"]


def read_msrs(handle: Handle, indices: Iterable[int], *, partial: bool) -> dict[int, int]:
    """Return MSRs by index; KVM stops at the first that it refuses and says how far it came."""
    wanted = list(indices)
    buffer = uapi.kvm_msrs.pack({"entries": [{"index": index} for index in wanted]})
    done = handle.ioctl(uapi.KVM_GET_MSRS, buffer)
    if done < len(wanted) and not partial:
        raise _refused("KVM_GET_MSRS", wanted, done)
    entries = uapi.kvm_msrs.unpack(buffer).entries
    return {entry.index: entry.data for entry in entries[:done]}


def write_msrs(handle: Handle, values: Mapping[int, int], *, partial: bool) -> int:
    """Set MSRs by index, in the mapping's order; return how many were set."""
    entries = [{"index": index, "data": data} for index, data in values.items()]
    done = handle.ioctl(uapi.KVM_SET_MSRS, uapi.kvm_msrs.pack({"entries": entries}))
    if done < len(entries) and not partial:
        raise _refused("KVM_SET_MSRS", list(values), done)
    return done


def _refused(ioctl: str, indices: list[int], done: int) -> KVMError:
    detail = f"MSR {indices[done]:#x} refused, number {done + 1} of {len(indices)}"
    return KVMError(ioctl, EINVAL, detail=detail)
