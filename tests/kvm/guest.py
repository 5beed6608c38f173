"""A guest in real mode on nothing but pykvm.kvm: 64 KiB of memory at 0, code at 0x1000."""

from __future__ import annotations

import errno
import mmap
from typing import Any

from pykvm.errors import KVMError
from pykvm.kvm import VCPU, VM, Cap, ExitReason, System, uapi
from pykvm.kvm.handle import address_of
from pykvm.kvm.reasons import payload
from pykvm.kvm.records import Record
from support.host import HostCannot
from support.listing import assemble

CODE = 0x1000
MEMORY = 0x10000


def require_cap(handle: System | VM, cap: Cap) -> int:
    """The value of a capability; skips the test where the host does not offer it."""
    value = handle.check_extension(cap)
    if not value:
        raise HostCannot(cap.name, "this host does not offer it")
    return value


class Guest:
    """One vCPU in real mode; `run` returns exit after exit."""

    def __init__(self, vm: VM, *, flags: int = 0) -> None:
        self.vm = vm
        self.memory = mmap.mmap(-1, MEMORY)
        vm.set_user_memory_region(0, flags, 0, MEMORY, address_of(self.memory))
        self.vcpu: VCPU = vm.create_vcpu(0)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.vm.close()
        self.memory.close()

    def load(self, listing: str, **registers: int) -> None:
        """Put a listing at CODE and start there, with `registers` set."""
        code = assemble(listing)
        self.memory[CODE : CODE + len(code)] = code
        sregs = self.vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs({"rip": CODE, "rflags": 2, "rsp": 0x8000, **registers})

    @property
    def page(self) -> Record:
        """Struct kvm_run."""
        return uapi.kvm_run.unpack(self.vcpu.run_page)

    def set_page(self, field: str, value: int) -> None:
        """Set one byte of struct kvm_run."""
        self.vcpu.run_page[uapi.kvm_run.offset_of(field)] = value

    def run(self) -> tuple[ExitReason, Any]:
        """Run to the next exit; return its reason and payload."""
        self._enter()
        reason = ExitReason(self.page.exit_reason)
        return reason, payload(reason, self.vcpu.run_page)

    def _enter(self) -> None:
        try:
            self.vcpu.run()
        except KVMError as error:
            # A vCPU that has just left INIT.
            if error.errno != errno.EAGAIN:
                raise
            self._enter()
