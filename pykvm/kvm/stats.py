"""KVM's binary statistics: what the file descriptors of KVM_GET_STATS_FD hold.

Documentation/virt/kvm/api.rst, 4.133: a header, descriptors with names, and 64-bit values.
"""

from __future__ import annotations

import os
import struct

from pykvm.kvm import uapi
from pykvm.kvm.handle import fd_of

__all__ = ["read_stats"]


def read_stats(file: int | object) -> dict[str, int | list[int]]:
    """Return the statistics by name, of what `get_stats_fd` returned; histograms are lists.

    Counters count from the creation of the VM or vCPU.
    """
    fd = fd_of(file)
    header = uapi.kvm_stats_header.unpack(os.pread(fd, uapi.kvm_stats_header.size, 0))
    step = uapi.kvm_stats_desc.size + header.name_size
    descriptors = os.pread(fd, header.num_desc * step, header.desc_offset)
    result: dict[str, int | list[int]] = {}
    for at in range(0, len(descriptors), step):
        desc = uapi.kvm_stats_desc.unpack(descriptors[at : at + step])
        name = desc.name.partition(b"\0")[0].decode()
        data = os.pread(fd, desc.size * 8, header.data_offset + desc.offset)
        values = struct.unpack(f"<{len(data) // 8}Q", data)
        result[name] = values[0] if desc.size == 1 else list(values)
    return result
