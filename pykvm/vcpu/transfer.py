"""All of a vCPU's state by ioctls, packed once and done in C, in the order that is right.

No document of the kernel's gives an order.  This is ours, with the reasons, all of which are in
arch/x86/kvm of Linux (x86.c, lapic.c, vmx/nested.c, svm/nested.c):

*Taking* (`Transfer.take`), once the instruction at hand is completed:

1. MP state: KVM carries out INIT and start-up IPIs that wait when it is asked for it.
2. Registers, XCR0, XSAVE area, debug registers.
3. Local APIC.
4. MSRs, with the TSC deadline: what the timer has delivered is in the local APIC by then, and what
   it has not is a deadline still.
5. Nested state, TSC offset.
6. Events last: all of the above may turn into some.

*Putting* (`Transfer.put`), once the instruction at hand is forgotten, whose completion would move
RIP and overwrite a register:

1. System registers: EFER and CR4 say what nested state may be, APIC_BASE in which mode the local
   APIC is.  A bitmap of interrupts (kvm_sregs) is left empty: KVM would inject its vector beside
   the one of the events.
2. General registers: setting them clears exceptions that wait, so it comes before the events.
3. XCR0, XSAVE area, debug registers.
4. Local APIC: before the TSC deadline, which is dropped unless LVT has the timer in that mode.
5. MSRs, but for the TSC deadline.
6. TSC offset: KVM turns a deadline into time by it, so before that.  Where KVM moves the offset,
   IA32_TSC is the state, and the first to be put.
7. TSC deadline.
8. Nested state: needs EFER, CR4 and the MSRs of VMX.
9. MP state: KVM_SET_SREGS makes a vCPU at the reset vector runnable.
10. Events.

CPUID is none of it: KVM takes it before the first KVM_RUN only, and a machine has the CPUID that
it was made with.
"""

from __future__ import annotations

from errno import EBADF, EINVAL

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, KVMError, PykvmError
from pykvm.kvm import uapi
from pykvm.kvm.constants import (
    KVM_MP_STATE_RUNNABLE,
    KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET,
    KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
)
from pykvm.kvm.handle import name_of
from pykvm.kvm.hints import hint_for
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.claim import refusal
from pykvm.vcpu.msr_list import (
    IA32_TSC,
    IA32_TSC_ADJUST,
    IA32_TSC_DEADLINE,
    LARGEST_BATCH,
    msrs_of,
    pack,
)
from pykvm.vcpu.saved import RUNNING_MSRS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from pykvm import kvm
    from pykvm.vcpu.saved import VcpuState

    Msrs = Sequence[tuple[int, int]]

__all__ = ["Transfer"]

_VMX = 1 << 5  # CPUID.1:ECX
_SVM = 1 << 2  # CPUID.80000001H:ECX
_TSC_ADJUST = 1 << 1  # CPUID.(7,0):EBX

_NR_XCRS = slice(0, 4)
_SREGS2_FLAGS = uapi.kvm_sregs2.offset_of("flags")
_EVENT_FLAGS = uapi.kvm_vcpu_events.offset_of("flags")
_EXCEPTION_PENDING = uapi.kvm_vcpu_events.offset_of("exception.pending")
_TRIPLE_FAULT = uapi.kvm_vcpu_events.offset_of("triple_fault.pending")
_HEAD = uapi.kvm_msrs.size
_MSR = uapi.kvm_msr_entry.packer

# Of the local APIC's registers as KVM has them (SDM 3A table 11-1): the mode in LVTT, initial and
# current count.
_LVTT_MODE, _MODE_BITS, _MASKED = 0x322, 0b110, 0b1
_TMICT = slice(0x380, 0x384)
_TMCCT = slice(0x390, 0x394)

# When its MSR is written KVM writes the time to guest memory (struct pvclock_wall_clock): the MSR's
# numbers, old and new, and the size (Documentation/virt/kvm/x86/msr.rst).
_WALL_CLOCK_MSRS = (0x11, 0x4B56_4D00)
_WALL_CLOCK_SIZE = 12

# MSRs whose writing KVM refuses, and of which it was found that they are what they should be: by
# whether the local APIC is KVM's.
_constant: dict[bool, set[int]] = {False: set(), True: set()}


class _Host:
    """What this host's KVM has, asked once."""

    _known: _Host | None = None

    def __init__(self) -> None:
        with _system() as system:
            extension = system.check_extension
            self.sregs2 = bool(extension(uapi.KVM_CAP_SREGS2))
            self.xsave2 = bool(extension(uapi.KVM_CAP_XSAVE2))
            self.nested_size = extension(uapi.KVM_CAP_NESTED_STATE)
            self.msrs = tuple(system.msr_index_list())
        self._parts: dict[tuple[bytes, bool], tuple[tuple[int, ...], int, bool]] = {}

    def parts_of(self, vcpu: kvm.VCPU, *, has_lapic: bool) -> tuple[tuple[int, ...], int, bool]:
        """What is known of this vCPU by its CPUID.

        Its MSRs, the size of its nested state, and whether it has IA32_TSC_ADJUST.  To find out
        takes milliseconds.
        """
        key = bytes(vcpu.get_cpuid2_packed()), has_lapic
        known = self._parts.get(key)
        if known is None:
            leaves = vcpu.get_cpuid2()
            nested = self.nested_size if _can_nest(leaves) else 0
            known = msrs_of(vcpu, self.msrs, leaves), nested, _has_tsc_adjust(leaves)
            self._parts[key] = known
        return known

    @classmethod
    def get(cls) -> _Host:
        """The one of this process."""
        if cls._known is None:
            cls._known = cls()
        return cls._known


def _system() -> kvm.System:
    from pykvm.kvm import System

    return System(warns=False)


class _Packed:
    """Ioctls and their arguments, for `pykvm_transfer`."""

    def __init__(self) -> None:
        #: Of each ioctl its number, where its argument lies, and what it returns if all was done.
        self.calls: list[tuple[int, int, int]] = []
        self._data = bytearray()
        self._pointers: list[tuple[int, int]] = []
        self.places: dict[str, tuple[int, int]] = {}
        self.buffer: Any = None
        self.steps: Any = None

    def add(self, request: int, data: bytes | bytearray, result: int = 0, name: str = "") -> None:
        """An ioctl with this argument, to be found again as `name`."""
        at = self._append(data)
        self.calls.append((request, at, result))
        self.places[name or name_of(request)] = at, len(data)

    def add_attribute(self, request: int, value: int, name: str) -> None:
        """KVM_GET_DEVICE_ATTR or KVM_SET_DEVICE_ATTR of the TSC offset."""
        at = self._append(value.to_bytes(8, "little"))
        fields = {"group": KVM_VCPU_TSC_CTRL, "attr": KVM_VCPU_TSC_OFFSET}
        self.add(request, uapi.kvm_device_attr.pack(fields), name=f"{name} attribute")
        place, _ = self.places[f"{name} attribute"]
        self._pointers.append((place + uapi.kvm_device_attr.offset_of("addr"), at))
        self.places[name] = at, 8

    def _append(self, data: bytes | bytearray) -> int:
        at = len(self._data)
        self._data += data
        # An XSAVE area is aligned to 64 bytes.
        self._data += bytes(-len(self._data) % 64)
        return at

    def finish(self) -> _Packed:
        """All was added."""
        self.buffer = ffi.new("char[]", len(self._data))
        ffi.memmove(self.buffer, self._data, len(self._data))
        base = int(ffi.cast("uintptr_t", self.buffer))
        for place, target in self._pointers:
            ffi.memmove(self.buffer + place, (base + target).to_bytes(8, "little"), 8)
        self.steps = ffi.new("struct pykvm_step[]", self.calls)
        return self

    def do(self, core: Any, first: int = 0) -> int | None:
        """Do them from that one on: None, or the number of the one that was not done."""
        count = len(self.calls) - first
        done: int = lib.pykvm_transfer(core, self.steps + first, count, self.buffer)
        return None if done == count else first + done

    def set_number(self, name: str, value: int) -> None:
        """Change an argument of 64 bits."""
        at, size = self.places[name]
        ffi.memmove(self.buffer + at, value.to_bytes(size, "little"), size)

    def part(self, name: str) -> bytes:
        """An argument as it is now."""
        at, size = self.places[name]
        return bytes(ffi.buffer(self.buffer + at, size))


class Transfer:
    """Takes and puts the state of one vCPU, of which it finds out once what there is.

    `core` is its struct pykvm_vcpu.
    """

    def __init__(self, core: Any, vcpu: kvm.VCPU) -> None:
        self._core = core
        self._kvm = vcpu
        host = _Host.get()
        self._sregs2 = host.sregs2
        self._xsave2 = host.xsave2
        self.has_lapic = _is_there(vcpu.get_lapic)
        self._msrs, self._nested_size, adjusts = host.parts_of(vcpu, has_lapic=self.has_lapic)
        has_offset = vcpu.has_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
        self._kvm_moves_tsc = has_offset and _moves_tsc(vcpu)
        self._has_offset = has_offset and not self._kvm_moves_tsc
        if self._has_offset:
            # Where CPUID does not show IA32_TSC_ADJUST, KVM drops the VMM's writes of it, and what
            # the guest has written to IA32_TSC is in the offset.
            by_offset = {IA32_TSC} if adjusts else {IA32_TSC, IA32_TSC_ADJUST}
            self._msrs = tuple(index for index in self._msrs if index not in by_offset)
        #: What of kvm_vcpu_events KVM shows (KVM_VCPUEVENT_VALID_...).
        self.event_flags: int = vcpu.get_vcpu_events().flags
        self._getting: _Packed | None = None
        self._looking: _Packed | None = None
        # The initial count of a timer that has run out, which KVM was not given.
        self._spent = 0
        # What was put last, newest last.
        self._putting: dict[int, tuple[VcpuState, _Packed, list[tuple[int, int]]]] = {}

    def take(self) -> dict[str, Any]:
        """The fields of a VcpuState that are KVM's.  Raises KVMError."""
        packed = self._getting
        if packed is None:
            packed = self._getting = self._pack_gets()
        failed = packed.do(self._core)
        if failed is not None:
            raise self._refused(packed, failed)
        return {
            "regs": packed.part("regs"),
            "sregs": self._sregs(packed.part("sregs")),
            "xcrs": packed.part("xcrs"),
            "xsave": packed.part("xsave"),
            "debugregs": packed.part("debugregs"),
            "lapic": self._shown(packed.part("lapic")) if self.has_lapic else None,
            "msrs": self._unpack_msrs(packed),
            "nested": _trimmed(packed.part("nested")) if self._nested_size else None,
            "tsc_khz": self._kvm.get_tsc_khz(),
            "tsc_offset": int.from_bytes(packed.part("tsc"), "little")
            if self._has_offset
            else None,
            "mp_state": int.from_bytes(packed.part("mp_state"), "little"),
            "events": packed.part("events"),
        }

    def look(self) -> dict[str, Any]:
        """Those of the fields that change while the guest stands, if KVM has the local APIC."""
        packed = self._looking
        if packed is None:
            packed = self._looking = _Packed()
            packed.add(uapi.KVM_GET_MP_STATE, bytes(uapi.kvm_mp_state.size), name="mp_state")
            packed.add(uapi.KVM_GET_LAPIC, bytes(uapi.kvm_lapic_state.size), name="lapic")
            packed.add(uapi.KVM_GET_VCPU_EVENTS, bytes(uapi.kvm_vcpu_events.size), name="events")
            packed.finish()
        failed = packed.do(self._core)
        if failed is not None:
            raise self._refused(packed, failed)
        return {
            "mp_state": int.from_bytes(packed.part("mp_state"), "little"),
            "lapic": self._shown(packed.part("lapic")),
            "events": packed.part("events"),
        }

    def _shown(self, lapic: bytes) -> bytes:
        """The local APIC with the initial count that KVM was not given, if there is no other."""
        if not self._spent or int.from_bytes(lapic[_TMICT], "little"):
            return lapic
        return lapic[: _TMICT.start] + self._spent.to_bytes(4, "little") + lapic[_TMICT.stop :]

    def get_lapic(self) -> bytes:
        """The local APIC of KVM's alone.  Raises KVMError."""
        return self._shown(self._kvm.get_lapic())

    def timer_may_be_late(self) -> bool:
        """Whether a one-shot timer has run out that KVM may not have delivered yet.

        One whose interrupt was taken looks the same.
        """
        lapic = self._kvm.get_lapic()
        return bool(_spent_count(lapic)) and not lapic[_LVTT_MODE] & _MASKED

    def set_lapic(self, registers: bytes | bytearray) -> None:
        """Set the local APIC of KVM's alone.  Raises KVMError."""
        self._spent = _spent_count(registers)
        self._kvm.set_lapic(_without_spent_timer(registers))

    def _sregs(self, sregs: bytes) -> bytes:
        """A kvm_sregs2 of what was got: of kvm_sregs, without the bitmap of interrupts."""
        size = uapi.kvm_sregs2.size
        return sregs if self._sregs2 else sregs[:_SREGS2_FLAGS].ljust(size, b"\0")

    def _pack_gets(self) -> _Packed:
        packed = _Packed()
        packed.add(uapi.KVM_GET_MP_STATE, bytes(uapi.kvm_mp_state.size), name="mp_state")
        packed.add(uapi.KVM_GET_REGS, bytes(uapi.kvm_regs.size), name="regs")
        # Without KVM_CAP_SREGS2 the bitmap of interrupts lies where flags and PDPTRs would.
        sregs = uapi.KVM_GET_SREGS2 if self._sregs2 else uapi.KVM_GET_SREGS
        packed.add(sregs, bytes(uapi.kvm_sregs2.size), name="sregs")
        packed.add(uapi.KVM_GET_XCRS, bytes(uapi.kvm_xcrs.size), name="xcrs")
        xsave = uapi.KVM_GET_XSAVE2 if self._xsave2 else uapi.KVM_GET_XSAVE
        packed.add(xsave, bytes(self._kvm.xsave_size), name="xsave")
        packed.add(uapi.KVM_GET_DEBUGREGS, bytes(uapi.kvm_debugregs.size), name="debugregs")
        if self.has_lapic:
            packed.add(uapi.KVM_GET_LAPIC, bytes(uapi.kvm_lapic_state.size), name="lapic")
        self._add_msrs(packed, uapi.KVM_GET_MSRS, [(index, 0) for index in self._msrs])
        if self._nested_size:
            room = uapi.kvm_nested_state.pack({"size": self._nested_size})
            packed.add(
                uapi.KVM_GET_NESTED_STATE, room.ljust(self._nested_size, b"\0"), name="nested"
            )
        if self._has_offset:
            packed.add_attribute(uapi.KVM_GET_DEVICE_ATTR, 0, "tsc")
        packed.add(uapi.KVM_GET_VCPU_EVENTS, bytes(uapi.kvm_vcpu_events.size), name="events")
        return packed.finish()

    @staticmethod
    def _add_msrs(packed: _Packed, request: int, msrs: Msrs) -> None:
        for first in range(0, len(msrs), LARGEST_BATCH):
            batch = msrs[first : first + LARGEST_BATCH]
            packed.add(request, pack(batch), len(batch), f"msrs from {batch[0][0]:#x}")

    def _unpack_msrs(self, packed: _Packed) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        for first in range(0, len(self._msrs), LARGEST_BATCH):
            entries = packed.part(f"msrs from {self._msrs[first]:#x}")[_HEAD:]
            found += ((index, value) for index, _, value in _MSR.iter_unpack(entries))
        return tuple(found)

    def put(self, state: VcpuState, *, registers: bool, tsc_offset: int | None = None) -> None:
        """Set all that is KVM's in `state`, but for its TSC offset if there is a `tsc_offset`.

        Without `registers` the caller sets the general and the system registers.  Raises KVMError;
        ConfigError for a state that is none of this vCPU's.
        """
        packed = self._packed(state)
        offset = state.tsc_offset if tsc_offset is None else tsc_offset
        self._spent = 0 if state.lapic is None else _spent_count(state.lapic)
        # The guest cannot change it.
        if not self.was_put(state) and self._kvm.get_tsc_khz() != state.tsc_khz:
            self._kvm.set_tsc_khz(state.tsc_khz)
        if self._kvm_moves_tsc:
            self._put_tsc(state)
        while True:
            if "tsc" in packed.places and offset is not None:
                packed.set_number("tsc", offset)
            failed = packed.do(self._core, 0 if registers else 2)
            if failed is None:
                break
            if packed.calls[failed][0] != uapi.KVM_SET_MSRS or self._core.error:
                self._putting.pop(id(state), None)
                raise self._refused(packed, failed)
            self._leave_out(packed, failed)
            packed = self._pack_puts(state)
        if not self.was_put(state):
            self._putting[id(state)] = state, packed, _overwrites(state)
            if len(self._putting) > _KEPT:
                del self._putting[next(iter(self._putting))]

    def _put_tsc(self, state: VcpuState) -> None:
        """Have the TSC go on from the state's, where KVM moves the offset.

        KVM takes a write of IA32_TSC that is less than a second from what it expects for an attempt
        to synchronise, and adds the time since the last one (kvm_synchronize_tsc in x86.c).
        """
        wanted = next((value for index, value in state.msrs if index == IA32_TSC), None)
        if wanted is not None:
            offset = _tsc_offset(self._kvm)
            here = self._kvm.get_msrs([IA32_TSC])[IA32_TSC]
            offset = (offset + wanted - here) % (1 << 64)
            self._kvm.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, offset)

    def overwrites(self, state: VcpuState) -> list[tuple[int, int]]:
        """Where KVM writes guest memory when this state is put: addresses and sizes."""
        known = self._putting.get(id(state))
        return _overwrites(state) if known is None else known[2]

    def may_wait(self, state: VcpuState) -> bool:
        """Whether KVM may take the registers of this state with the next KVM_RUN, after all else.

        Not those that a local APIC or nested state builds on, PDPTRs (kvm_sregs has none), or an
        exception that waits, which setting the general registers clears.
        """
        return (
            self.was_put(state)
            and not self.has_lapic
            and state.nested is None
            and not any(state.sregs[_SREGS2_FLAGS : _SREGS2_FLAGS + 8])
            and not state.events[_EXCEPTION_PENDING]
        )

    def was_put(self, state: VcpuState) -> bool:
        """Whether this very state was put before, lately: KVM will not refuse it."""
        return id(state) in self._putting

    def _packed(self, state: VcpuState) -> _Packed:
        known = self._putting.get(id(state))
        return self._pack_puts(state) if known is None else known[1]

    def _pack_puts(self, state: VcpuState) -> _Packed:
        self._check(state)
        packed = _Packed()
        if self._sregs2:
            packed.add(uapi.KVM_SET_SREGS2, state.sregs)
        else:
            bitmap = bytes(uapi.kvm_sregs.size - _SREGS2_FLAGS)
            packed.add(uapi.KVM_SET_SREGS, state.sregs[:_SREGS2_FLAGS] + bitmap)
        packed.add(uapi.KVM_SET_REGS, state.regs)
        if any(state.xcrs[_NR_XCRS]):
            # Without XSAVE there is none, and KVM refuses even that (kvm_vcpu_ioctl_x86_set_xcrs).
            packed.add(uapi.KVM_SET_XCRS, state.xcrs)
        packed.add(uapi.KVM_SET_XSAVE, state.xsave)
        packed.add(uapi.KVM_SET_DEBUGREGS, state.debugregs)
        if state.lapic is not None:
            packed.add(uapi.KVM_SET_LAPIC, _without_spent_timer(state.lapic))
        left_out = _constant[self.has_lapic] | ({IA32_TSC} if self._kvm_moves_tsc else set())
        msrs = [msr for msr in state.msrs if msr[0] not in left_out]
        deadline = [msr for msr in msrs if msr[0] == IA32_TSC_DEADLINE and self.has_lapic]
        self._add_msrs(
            packed, uapi.KVM_SET_MSRS, [msr for msr in msrs if msr[0] != IA32_TSC_DEADLINE]
        )
        if state.tsc_offset is not None and self._has_offset:
            packed.add_attribute(uapi.KVM_SET_DEVICE_ATTR, state.tsc_offset, "tsc")
        self._add_msrs(packed, uapi.KVM_SET_MSRS, deadline)
        if state.nested is not None:
            packed.add(uapi.KVM_SET_NESTED_STATE, state.nested)
        if self.has_lapic or state.mp_state != KVM_MP_STATE_RUNNABLE:
            packed.add(uapi.KVM_SET_MP_STATE, state.mp_state.to_bytes(4, "little"))
        packed.add(uapi.KVM_SET_VCPU_EVENTS, self._events(state.events))
        return packed.finish()

    def _check(self, state: VcpuState) -> None:
        """Raise ConfigError unless the state's parts are as long as KVM reads them here."""
        sizes = {
            "regs": uapi.kvm_regs.size,
            "sregs": uapi.kvm_sregs2.size,
            "xcrs": uapi.kvm_xcrs.size,
            "xsave": self._kvm.xsave_size,
            "debugregs": uapi.kvm_debugregs.size,
            "events": uapi.kvm_vcpu_events.size,
        }
        if self.has_lapic or state.lapic is not None:
            sizes["lapic"] = uapi.kvm_lapic_state.size if self.has_lapic else 0
        for name, size in sizes.items():
            found = len(getattr(state, name) or b"")
            if found != size:
                raise ConfigError(
                    f"the state of a vCPU has {found} bytes of {name}; this vCPU has {size}"
                )
        if state.nested is not None:
            self._check_nested(state.nested)
        known = {*self._msrs, IA32_TSC, IA32_TSC_ADJUST}
        unknown = [index for index, _ in state.msrs if index not in known]
        if unknown:
            raise ConfigError(f"the state of a vCPU has MSR {unknown[0]:#x}; this vCPU has none")

    def _check_nested(self, nested: bytes) -> None:
        head = uapi.kvm_nested_state.size
        size = uapi.kvm_nested_state.unpack(nested).size if len(nested) >= head else 0
        if not self._nested_size or size != len(nested) or size > self._nested_size:
            raise ConfigError("this vCPU does not take the state's nested virtualization")

    def _events(self, events: bytes) -> bytes:
        """Events with the flags of this VM, of which some are capabilities that it has enabled."""
        optional = KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT
        flags = int.from_bytes(events[_EVENT_FLAGS : _EVENT_FLAGS + 4], "little")
        needed = (KVM_VCPUEVENT_VALID_PAYLOAD if events[_EXCEPTION_PENDING] else 0) | (
            KVM_VCPUEVENT_VALID_TRIPLE_FAULT if events[_TRIPLE_FAULT] else 0
        )
        flags = flags & (~optional | needed) | self.event_flags & optional
        return events[:_EVENT_FLAGS] + flags.to_bytes(4, "little") + events[_EVENT_FLAGS + 4 :]

    def _leave_out(self, packed: _Packed, failed: int) -> None:
        """KVM refuses to write an MSR: no matter, if it is what it should be."""
        _, at, _ = packed.calls[failed]
        entry = at + _HEAD + int(self._core.value) * _MSR.size
        index, _, value = _MSR.unpack_from(ffi.buffer(packed.buffer), entry)
        if index in RUNNING_MSRS or self._kvm.get_msrs([index], partial=True).get(index) == value:
            _constant[self.has_lapic].add(index)
            return
        raise KVMError(
            "KVM_SET_MSRS", EINVAL, detail=f"MSR {index:#x} cannot be set to {value:#x} here"
        )

    def _refused(self, packed: _Packed, failed: int) -> PykvmError:
        name, errno = name_of(packed.calls[failed][0]), self._core.error or EINVAL
        if errno == EBADF:
            return refusal(lib.PYKVM_SHUT, "", 0)  # by another thread, which closes the vCPU
        return KVMError(name, errno, hint=hint_for(name, errno))


# So many states are kept packed by each vCPU.
_KEPT = 8


def _spent_count(lapic: bytes | bytearray) -> int:
    """The initial count of a one-shot timer that has run out, else 0.

    KVM starts the timer of a local APIC that it is given, and one whose count is 0 interrupts at
    once: it cannot know whether that interrupt was taken (set_target_expiration in lapic.c).  We
    do (`KvmEngine.deliver_timers`), so such a timer gets no initial count, with which it does not
    start.  TMICT reads as 0 for the guest until it sets it.
    """
    is_one_shot = not lapic[_LVTT_MODE] & _MODE_BITS
    if not is_one_shot or any(lapic[_TMCCT]):
        return 0
    return int.from_bytes(lapic[_TMICT], "little")


def _without_spent_timer(lapic: bytes | bytearray) -> bytes:
    if not _spent_count(lapic):
        return bytes(lapic)
    return bytes(lapic[: _TMICT.start]) + bytes(4) + bytes(lapic[_TMICT.stop :])


def _overwrites(state: VcpuState) -> list[tuple[int, int]]:
    return [
        (address, _WALL_CLOCK_SIZE)
        for index, address in state.msrs
        if index in _WALL_CLOCK_MSRS and address
    ]


def _trimmed(nested: bytes) -> bytes:
    """As much of a kvm_nested_state as KVM has filled in."""
    return nested[: uapi.kvm_nested_state.unpack(nested).size]


def _tsc_offset(vcpu: kvm.VCPU) -> int:
    offset: int = vcpu.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
    return offset


def _moves_tsc(vcpu: kvm.VCPU) -> bool:
    """Whether KVM changes the TSC offset by itself.

    Where the host's TSC is unstable it does so at each ioctl (kvm_arch_vcpu_load): the guest's
    stands still from one KVM_RUN to the next, which catches up.
    """
    return _tsc_offset(vcpu) != _tsc_offset(vcpu)


def _is_there(get: Any) -> bool:
    try:
        get()
    except KVMError as error:
        if error.errno != EINVAL:
            raise
        return False
    return True


def _has_tsc_adjust(leaves: Iterable[Any]) -> bool:
    return any(
        leaf.function == 7 and leaf.index == 0 and bool(leaf.ebx & _TSC_ADJUST) for leaf in leaves
    )


def _can_nest(leaves: Iterable[Any]) -> bool:
    """Whether the guest can be a hypervisor: else KVM has no nested state of it."""
    return any(
        (leaf.function == 1 and leaf.ecx & _VMX)
        or (leaf.function == 0x8000_0001 and leaf.ecx & _SVM)
        for leaf in leaves
    )
