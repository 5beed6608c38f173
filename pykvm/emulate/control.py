"""Small instructions of the system: SMAP's flag, time, processor number, TLB, caches, waiting."""

from __future__ import annotations

from functools import partial
from struct import Struct, pack, unpack

from pykvm.emulate.fault import GP, UD, Fault
from pykvm.kvm import uapi
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR4, RFLAGS

if TYPE_CHECKING:
    from pykvm.emulate.refused import Operations, Refused

__all__ = ["CONTROL_OPERATIONS"]

_IA32_TSC, _IA32_TSC_AUX = 0x10, 0xC0000103
# struct kvm_msrs: nmsrs; struct kvm_msr_entry: index, data.
_MSRS_HEADER, _MSR = Struct("<I4x"), Struct("<I4xQ")
_LINE = 64


def _msrs(at: Refused, *indices: int) -> list[int]:
    """The values of MSRs, 0 for what KVM does not have (KVM_GET_MSRS)."""
    buffer = bytearray(_MSRS_HEADER.pack(len(indices)))
    for index in indices:
        buffer += _MSR.pack(index, 0)
    at.cpu.kvm.ioctl(uapi.KVM_GET_MSRS, buffer)
    return [value for _, value in _MSR.iter_unpack(buffer[_MSRS_HEADER.size :])]


def _access_check(at: Refused, *, allowed: bool) -> None:
    """STAC and CLAC: RFLAGS.AC, which lets the supervisor at user pages under SMAP (SDM 2B)."""
    at.no_lock()
    if at.cpl:
        raise Fault(UD)
    at.set_flags(RFLAGS.AC, RFLAGS.AC if allowed else 0)


def _rdtscp(at: Refused) -> None:
    if at.cpl and at.sregs.cr4 & CR4.TSD:
        raise Fault(GP)
    counter, processor = _msrs(at, _IA32_TSC, _IA32_TSC_AUX)
    at.set_pair(counter)
    at.regs.rcx = processor & 0xFFFF_FFFF


def _rdpid(at: Refused) -> None:
    (processor,) = _msrs(at, _IA32_TSC_AUX)
    at.set(at.instruction.rm, 64 if at.bits == 64 else 32, processor)


def _cmpxchg16b(at: Refused) -> None:
    """Compare and exchange 16 bytes, atomically whatever the other vCPUs do (SDM 2A)."""
    if not at.instruction.wide:
        raise Fault(UD)
    linear = at.linear(16, write=True)
    if linear % 16:
        raise Fault(GP)
    physical = at.memory.physical(linear, write=True)
    expected = pack("<2Q", at.regs.rax, at.regs.rdx)
    desired = pack("<2Q", at.regs.rbx, at.regs.rcx)
    if at.memory.is_ram(physical, 16):
        found = at.memory.memory.compare_exchange(physical, expected, desired)
    else:
        found = at.memory.read_physical(physical, 16)
        at.memory.write_physical(physical, desired if found == expected else found)
    same = found == expected
    if not same:
        at.regs.rax, at.regs.rdx = unpack("<2Q", found)
    at.set_flags(RFLAGS.ZF, RFLAGS.ZF if same else 0)


def _monitor(at: Refused, *, in_user: bool) -> None:
    """MONITOR checks its operands; nothing is watched, since MWAIT does not wait."""
    if at.cpl and not in_user:
        raise Fault(UD)
    if at.get(1, 32):
        raise Fault(GP)
    segment = "ds"
    offset = at.regs.rax & (1 << at.instruction.address_bits) - 1
    at.memory.read(at.in_segment(segment, offset, 1, write=False), 1)


def _mwait(at: Refused, *, in_user: bool) -> None:
    """MWAIT as a NOP: the manual lets the processor leave at any time, for any reason."""
    if at.cpl and not in_user:
        raise Fault(UD)
    if at.get(1, 32) & ~1:
        raise Fault(GP)


def _invpcid(at: Refused) -> None:
    at.privileged()
    kind = at.get(at.instruction.reg, 64 if at.bits == 64 else 32)
    descriptor = int.from_bytes(at.read(16), "little")
    pcid = descriptor & 0xFFF
    if kind > 3 or (kind < 2 and descriptor >> 12 & (1 << 52) - 1):
        raise Fault(GP)
    if kind < 2 and pcid and not at.sregs.cr4 & CR4.PCIDE:
        raise Fault(GP)
    flush_tlb(at)


def flush_tlb(at: Refused) -> None:
    """Have KVM forget every translation: what changing CR4.PGE does (SDM 3A 4.10.4.1)."""
    for _ in range(2):
        at.sregs.cr4 ^= CR4.PGE
        at.cpu.engine.commit_sregs()


def _write_back(at: Refused) -> None:
    """CLWB and CLFLUSHOPT: caches are not the guest's to see, but a fault is."""
    at.memory.physical(at.linear(1, write=False), write=False)


def _clzero(at: Refused) -> None:
    """CLZERO: the cache line at rAX becomes zeros (APM 3)."""
    at.no_lock()
    offset = at.regs.rax & (1 << at.instruction.address_bits) - 1 & -_LINE
    linear = at.in_segment("ds", offset, _LINE, write=True)
    at.memory.write(linear, bytes(_LINE))


CONTROL_OPERATIONS: Operations = {
    "0f 01 /7 fc": ("clzero", _clzero),
    "0f 01 /1 ca": ("clac", partial(_access_check, allowed=False)),
    "0f 01 /1 cb": ("stac", partial(_access_check, allowed=True)),
    "0f 01 /7 f9": ("rdtscp", _rdtscp),
    "f3 0f c7 /7 r": ("rdpid", _rdpid),
    "0f c7 /1 m": ("cmpxchg16b", _cmpxchg16b),
    "0f 01 /1 c8": ("monitor", partial(_monitor, in_user=False)),
    "0f 01 /1 c9": ("mwait", partial(_mwait, in_user=False)),
    "0f 01 /7 fa": ("monitorx", partial(_monitor, in_user=True)),
    "0f 01 /7 fb": ("mwaitx", partial(_mwait, in_user=True)),
    "66 0f 38 82": ("invpcid", _invpcid),
    "66 0f ae /6 m": ("clwb", _write_back),
    "66 0f ae /7 m": ("clflushopt", _write_back),
}
