"""One instruction at a time in Unicorn, on the guest's own memory.

Unicorn never sees the guest's page tables: it asks for each page that the instruction touches
(UC_TLB_VIRTUAL), and gets what `LinearMemory` finds, with the faults that this raises.  Memory is
mapped where it lies (uc_mem_map_ptr).  The bytes of the instruction are put on a page of our own,
which stands at RIP: KVM has fetched them already.  A page that is no memory is a window, whose
accesses go to the devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm._core import ffi as host
from pykvm.emulate.fault import GP, MF, NM, PF, SS, UD, Fault, UnsupportedError
from pykvm.emulate.fpu import check_mmx, check_sse, check_x87, image_of, set_image
from pykvm.x86.descriptors import SegmentDescriptor
from pykvm.x86.registers import CR0, RFLAGS
from pykvm.x86.xsave import FCW, FSW, FTW, MXCSR, MXCSR_MASK, ST0, XMM_END

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.emulate.binding import Library
    from pykvm.emulate.memory import LinearMemory
    from pykvm.emulate.refused import Refused
    from pykvm.emulate.units import Unit
    from pykvm.memory import Region

__all__ = ["Engine"]

PAGE = 4096
_OFFSET = PAGE - 1
_LEGACY = 512  # FXSAVE's area, which begins an XSAVE image

# Guest-physical addresses of our own, above what any guest's memory reaches up to.
_PRIVATE = (1 << 52) - (1 << 20)
_CODE = _PRIVATE  # two pages: an instruction may cross from one to the next
_SWITCH = _PRIVATE + 2 * PAGE  # code and data of FXRSTOR and FXSAVE
_SHORT = _PRIVATE + 4 * PAGE  # two pages: an operand that was read for Unicorn
_WINDOWS = _PRIVATE + 6 * PAGE
_WINDOW_COUNT = 8
_SIZE = 6 + _WINDOW_COUNT

# Where they stand in the linear address space: not canonical, so in no guest's way, in 64-bit code;
# in 32-bit code in its way, which is why the TLB is flushed behind them.
_SWITCH_64, _SWITCH_32 = 1 << 62, 0x7FFF_0000
_RESTORE, _SAVE = 0, 16
_GDT = 0x800  # in the page of data, behind FXSAVE's area
_HLT = b"\xf4"  # ends the translation behind an instruction
_SWITCH_CODE = {
    # FXRSTOR64 and FXSAVE64 with operands that RIP counts from, FXRSTOR and FXSAVE with absolute
    # ones: all of them at the start of the page behind.
    64: (b"\x48\x0f\xae\x0d\xf8\x0f\0\0", b"\x48\x0f\xae\x05\xe8\x0f\0\0"),
    32: (b"\x0f\xae\x0d\0\x10\xff\x7f", b"\x0f\xae\x05\0\x10\xff\x7f"),
}

# What instructions change of RFLAGS; the rest is the system's, and TF would stop Unicorn.
_STATUS = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.DF | RFLAGS.OF

# In struct kvm_regs' order.
_REGISTERS_64 = (
    *("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RSP", "RBP"),
    *("R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"),
)
_REGISTERS_32 = ("EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "ESP", "EBP")
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")

_PENDING = 1 << 7  # in the x87 status word
_POINTERS = 6
_CHECKS: dict[str, Callable[[Refused], None]] = {
    "x87": check_x87,
    "mmx": check_mmx,
    "sse": check_sse,
}
_CHANGES = {"x87": 1, "mmx": 1, "sse": 3}  # of XSTATE_BV; SSE includes conversions from MMX
_KNOWN_LIMIT = 4096
_POINTER = {16: 0xFFFF, 32: 0xFFFF_FFFF, 64: (1 << 64) - 1}


class Engine:
    """A Unicorn engine for code of 64 bits, or of 32 and 16.  One thread uses it."""

    def __init__(self, library: Library, bits: int, memory: LinearMemory) -> None:
        self._library = library
        self._wide = bits == 64
        self._memory = memory
        self._ffi, self._lib = library.ffi, library.lib
        self._engine: Any = None
        self._regions: tuple[Region, ...] = ()
        self._views: list[Any] = []
        self._own = bytearray(_SIZE * PAGE)
        self._error: BaseException | None = None
        self._interrupt: int | None = None
        self._window_pages: list[int] = []
        self._segments = b""
        self._loading = False
        self._code_page = 0
        self._short_page: int | None = None
        self._known: dict[int, bytes] = {}
        self._prepare_registers()

    def _prepare_registers(self) -> None:
        new, x86 = self._ffi.new, self._library.x86
        names = [*_REGISTERS_64, "EFLAGS", "FS_BASE", "GS_BASE", "RIP"]
        if not self._wide:
            names = [*_REGISTERS_32, "EFLAGS", "EIP"]
        numbers = [getattr(x86, f"UC_X86_REG_{name}") for name in names]
        self._count = len(names)
        self._general = 16 if self._wide else 8
        self._numbers = new("int[]", numbers)
        self._values = new("uint64_t[]", self._count)
        self._pointers = new("void *[]", [self._values + at for at in range(self._count)])

    # -- the engine itself -------------------------------------------------------------------

    def _open(self) -> None:
        """Make an engine, with the guest's memory and ours in it."""
        ffi, lib, uc, x86 = self._library
        self.close()
        self._regions = self._memory.memory.regions
        holder = ffi.new("uc_engine **")
        mode = uc.UC_MODE_64 if self._wide else uc.UC_MODE_32
        self._library.check(lib.uc_open(uc.UC_ARCH_X86, mode, holder))
        engine = self._engine = holder[0]
        control = self._library.control
        # A model with everything that Unicorn knows.
        control(engine, uc.UC_CTL_CPU_MODEL, ffi.cast("int", x86.UC_CPU_X86_SKYLAKE_SERVER))
        control(engine, uc.UC_CTL_TLB_TYPE, ffi.cast("int", uc.UC_TLB_VIRTUAL))
        for region in self._regions:
            self._map(region.start, region.mapping.slice(0, region.size))
        self._map(_PRIVATE, memoryview(self._own))
        self._hook(
            uc.UC_HOOK_TLB_FILL, "bool(void *, uint64_t, int, uc_tlb_entry *, void *)", self._fill
        )
        self._hook(uc.UC_HOOK_INTR, "void(void *, uint32_t, void *)", self._interrupted)
        self._hook(
            uc.UC_HOOK_MEM_READ | uc.UC_HOOK_MEM_WRITE,
            "void(void *, int, uint64_t, int, int64_t, void *)",
            self._access,
            _WINDOWS,
            _WINDOWS + _WINDOW_COUNT * PAGE - 1,
        )
        self._set(x86.UC_X86_REG_CR0, CR0.PE | CR0.MP | CR0.ET | CR0.NE)
        restore, save = _SWITCH_CODE[64 if self._wide else 32]
        at = _SWITCH - _PRIVATE
        self._own[at : at + 32] = restore.ljust(_SAVE, _HLT) + save.ljust(16, _HLT)
        pristine = ffi.new("uc_context **")
        self._library.check(lib.uc_context_alloc(engine, pristine))
        self._pristine = ffi.gc(pristine[0], lib.uc_context_free)
        self._library.check(lib.uc_context_save(engine, self._pristine))

    def _map(self, address: int, view: memoryview) -> None:
        pointer = self._ffi.from_buffer(view)
        # Holding the view holds the mapping: what Unicorn points at stays there.
        self._views.append((view, pointer))
        everything = self._library.uc.UC_PROT_ALL
        code = self._lib.uc_mem_map_ptr(self._engine, address, len(view), everything, pointer)
        if code:
            raise UnsupportedError(f"Unicorn cannot map memory at {address:#x}")

    def _hook(
        self, kind: int, signature: str, method: Callable[..., Any], first: int = 1, last: int = 0
    ) -> None:
        callback = self._ffi.callback(signature, method)
        self._views.append((callback, None))
        cast = self._ffi.cast
        code = self._lib.uc_hook_add(
            self._engine,
            self._ffi.new("uc_hook *"),
            kind,
            callback,
            self._ffi.NULL,
            cast("uint64_t", first),
            cast("uint64_t", last),
        )
        self._library.check(code)

    def _set(self, register: int, value: int) -> None:
        self._lib.uc_reg_write(self._engine, register, self._ffi.new("uint64_t[2]", [value, 0]))

    def close(self) -> None:
        """Give the engine back, and the guest's memory with it.  Closing twice is harmless."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._pristine = None
        self._lib.uc_close(engine)
        for view, pointer in self._views:
            if pointer is not None:
                self._ffi.release(pointer)
                view.release()
        self._views.clear()
        self._known.clear()
        self._segments = b""

    # -- what Unicorn asks -------------------------------------------------------------------

    def _fill(self, _: Any, address: int, access: int, entry: Any, __: Any) -> bool:
        """UC_HOOK_TLB_FILL: the page at a linear address."""
        uc = self._library.uc
        try:
            if self._loading:
                own = _SWITCH + (address & PAGE)
                entry.paddr, entry.perms = own, uc.UC_PROT_ALL
            elif access == uc.UC_MEM_FETCH:
                second = address & ~_OFFSET != self._code_page
                entry.paddr = _CODE + PAGE * second
                entry.perms = uc.UC_PROT_READ | uc.UC_PROT_EXEC
            else:
                write = access == uc.UC_MEM_WRITE
                # Filled for reading, it is asked for again before the first write.
                entry.perms = uc.UC_PROT_READ | (uc.UC_PROT_WRITE if write else 0)
                entry.paddr = self._page(address, write=write)
        except BaseException as error:  # noqa: BLE001 - it is raised behind the C code
            self._error = error
            return False
        return True

    def _page(self, address: int, *, write: bool) -> int:
        if self._short_page is not None:
            return _SHORT + PAGE * (address & ~_OFFSET != self._short_page)
        memory = self._memory
        physical = memory.physical(address, write=write) & ~_OFFSET
        region = memory.memory.region_at(physical)
        if region is not None and not (write and region.readonly):
            return physical
        if physical not in self._window_pages:
            if len(self._window_pages) == _WINDOW_COUNT:
                raise UnsupportedError("more than 8 pages of devices")
            self._window_pages.append(physical)
        return _WINDOWS + PAGE * self._window_pages.index(physical)

    def _interrupted(self, _: Any, number: int, __: Any) -> None:
        """UC_HOOK_INTR: the instruction raises an exception."""
        if self._interrupt is None:
            self._interrupt = number
        self._lib.uc_emu_stop(self._engine)

    def _access(self, _: Any, kind: int, address: int, size: int, value: int, __: Any) -> None:
        """UC_HOOK_MEM_READ and _WRITE: an access, at most 8 bytes, through a window."""
        page, offset = divmod(address - _WINDOWS, PAGE)
        physical = self._window_pages[page] + offset
        try:
            if kind == self._library.uc.UC_MEM_WRITE:
                data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
                self._memory.write_physical(physical, data)
                return
            found = b"\xff" * size
            if self._error is None:
                found = self._memory.read_physical(physical, size)
        except BaseException as error:  # noqa: BLE001 - it is raised behind the C code
            self._error = self._error or error
            return
        at = address - _PRIVATE
        self._own[at : at + size] = found

    # -- an instruction ----------------------------------------------------------------------

    def execute(self, at: Refused, unit: Unit) -> None:
        """Do the instruction.  Raises Fault, UnsupportedError, and what `Devices` raise.

        Whatever is raised, the registers are as before.
        """
        if unit.undefined:
            raise Fault(UD)
        if unit.kind in _CHECKS:
            _CHECKS[unit.kind](at)
        if at.instruction.memory is not None:
            linear = at.linear(1, write=False)
            if unit.aligned and linear % 16:
                raise Fault(GP)
            self._short_page = None
            if unit.short:
                start = _SHORT - _PRIVATE + linear % PAGE
                self._own[start : start + unit.short] = self._memory.read(linear, unit.short)
                self._short_page = linear & ~_OFFSET
        image = None
        if unit.kind != "general":
            image = image_of(at.cpu)
            if (unit.kind != "sse" or unit.mmx is not None) and image[FSW] & _PENDING:
                raise Fault(MF)
            if unit.signals and not _masked(unit, image):
                raise UnsupportedError(
                    "the guest unmasks floating-point exceptions, and Unicorn raises none"
                )
            if unit.kind == "mmx":
                _enter_mmx(image)
        if self._engine is None or self._memory.memory.regions is not self._regions:
            self._open()
        try:
            self._run(at, image)
        except BaseException:
            # Unicorn remembers an exception, and takes the next one for a double fault.
            self._lib.uc_context_restore(self._engine, self._pristine)
            self._segments = b""
            raise
        finally:
            self._error = None
            self._window_pages.clear()
        self._take_registers(at)
        at.regs.rflags &= ~unit.cleared
        if image is not None:
            self._take_image(at, image, unit)

    def _run(self, at: Refused, image: bytearray | None) -> None:
        uc = self._library.uc
        self._library.control(self._engine, uc.UC_CTL_TLB_FLUSH)
        if image is not None:
            self._switch(_RESTORE, image)
        if not self._wide:
            special = at.special
            hidden = bytes(host.buffer(host.addressof(special, "cs"), 6 * host.sizeof(special.cs)))
            self._load_segments(hidden, [getattr(special, name) for name in _SEGMENTS])
        self._error = self._interrupt = None
        begin: int = at.regs.rip
        self._put_code(at, begin)
        self._give_registers(at)
        code = self._lib.uc_emu_start(self._engine, begin, 0, 0, 1)
        if self._error is not None:
            raise _stack_fault(at, self._error)
        if self._interrupt is not None:
            raise _exception(self._interrupt)
        if code == uc.UC_ERR_INSN_INVALID:
            raise UnsupportedError("Unicorn does not know it")
        self._library.check(code)
        end = begin + at.instruction.length
        self._lib.uc_reg_read_batch(self._engine, self._numbers, self._pointers, self._count)
        if self._values[self._count - 1] != end & _POINTER[at.bits]:
            raise UnsupportedError(f"Unicorn stopped at {self._values[self._count - 1]:#x}")

    def _switch(self, place: int, image: bytearray) -> None:
        """Load the x87 and SSE state from the image, or save it there."""
        at = _SWITCH - _PRIVATE + PAGE
        if not self._wide:
            self._load_segments(b"flat", [None] * len(_SEGMENTS))
        self._loading = True
        try:
            if place == _RESTORE:
                self._own[at : at + _LEGACY] = image[:_LEGACY]
            begin = (_SWITCH_64 if self._wide else _SWITCH_32) + place
            self._library.check(self._lib.uc_emu_start(self._engine, begin, 0, 0, 1))
            if not self._wide:
                self._library.control(self._engine, self._library.uc.UC_CTL_TLB_FLUSH)
        finally:
            self._loading = False

    def _put_code(self, at: Refused, begin: int) -> None:
        """Put the instruction where Unicorn fetches it; have what it translated there forgotten."""
        linear = begin if self._wide else (at.special.cs.base + begin) & 0xFFFF_FFFF
        raw = at.instruction.raw
        self._code_page = linear & ~_OFFSET
        offset = linear & _OFFSET
        self._own[offset : offset + len(raw) + 1] = raw + _HLT
        if self._known.get(linear) == raw:
            return
        control, uc, cast = self._library.control, self._library.uc, self._ffi.cast
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
            control(self._engine, uc.UC_CTL_TB_FLUSH)
        elif linear in self._known:
            control(
                self._engine,
                uc.UC_CTL_TB_REMOVE_CACHE,
                cast("uint64_t", linear),
                cast("uint64_t", linear + len(raw)),
            )
        self._known[linear] = raw

    def _give_registers(self, at: Refused) -> None:
        values, words, count = self._values, at.words, self._general
        self._ffi.memmove(values, host.buffer(words, 8 * count), 8 * count)
        values[count] = at.regs.rflags & _STATUS | 2
        extra = 1
        if self._wide:
            values[count + 1] = at.special.fs.base
            values[count + 2] = at.special.gs.base
            extra = 3
        total = count + extra
        self._library.check(
            self._lib.uc_reg_write_batch(self._engine, self._numbers, self._pointers, total)
        )

    def _take_registers(self, at: Refused) -> None:
        values, words, count = self._values, at.words, self._general
        if self._wide:
            self._ffi.memmove(host.buffer(words, 8 * count), values, 8 * count)
        else:
            for number in range(count):
                words[number] = words[number] & ~0xFFFF_FFFF | values[number] & 0xFFFF_FFFF
        at.set_flags(_STATUS, values[count])

    def _take_image(self, at: Refused, image: bytearray, unit: Unit) -> None:
        self._switch(_SAVE, image)
        start = _SWITCH - _PRIVATE + PAGE
        # FXSAVE gives no instruction pointers; the mask of MXCSR and the free bytes are the host's.
        image[:_POINTERS] = self._own[start : start + _POINTERS]
        image[MXCSR:MXCSR_MASK] = self._own[start + MXCSR : start + MXCSR_MASK]
        image[ST0:XMM_END] = self._own[start + ST0 : start + XMM_END]
        if unit.mmx is not None:
            # A write to an MMX register sets the rest of the x87 register to ones (SDM 1 9.2.1).
            exponent = ST0 + 16 * unit.mmx + 8
            image[exponent : exponent + 2] = b"\xff\xff"
        set_image(at.cpu, image, _CHANGES[unit.kind])

    # -- code of 16 and 32 bits --------------------------------------------------------------

    def _load_segments(self, key: bytes, segments: list[Any]) -> None:
        """Give Unicorn the hidden parts of the segment registers, by a GDT of our own.

        `key` tells whether they are those that it has; None in place of one is a flat segment.
        """
        if key == self._segments:
            return
        ffi, lib, x86 = self._ffi, self._lib, self._library.x86
        table = bytearray(8)
        for name, segment in zip(_SEGMENTS, segments, strict=True):
            table += _descriptor(segment, code=name == "cs").encode()
        start = _SWITCH - _PRIVATE + PAGE + _GDT
        self._own[start : start + len(table)] = table
        gdt = ffi.new("uc_x86_mmr *", (0, _SWITCH_32 + PAGE + _GDT, len(table) - 1, 0))
        self._loading = True
        try:
            self._library.check(lib.uc_reg_write(self._engine, x86.UC_X86_REG_GDTR, gdt))
            for number, name in enumerate(_SEGMENTS, 1):
                register = getattr(x86, f"UC_X86_REG_{name.upper()}")
                selector = ffi.new("uint64_t *", 8 * number)
                self._library.check(lib.uc_reg_write(self._engine, register, selector))
        finally:
            self._loading = False
        self._library.control(self._engine, self._library.uc.UC_CTL_TLB_FLUSH)
        self._segments = key


def _descriptor(segment: Any, *, code: bool) -> SegmentDescriptor:
    """A descriptor of ring 0 that gives the same base and width; limits were checked before."""
    base, db = (segment.base & 0xFFFF_FFFF, segment.db) if segment is not None else (0, 1)
    kind = 0xB if code else 0x3
    return SegmentDescriptor(base=base, limit=0xFFFF_FFFF, type=kind, db=db, g=1)


def _masked(unit: Unit, image: bytearray) -> bool:
    """Whether no floating-point exception would come to be raised (SDM 1 8.1.5, 10.2.3)."""
    if unit.kind == "x87":
        return image[FCW] & 0x3F == 0x3F
    return int.from_bytes(image[MXCSR : MXCSR + 2], "little") & 0x1F80 == 0x1F80


def _enter_mmx(image: bytearray) -> None:
    """What MMX does to x87: the top of its stack is 0, and nothing is empty (SDM 1 9.5.1)."""
    top = image[FSW + 1] >> 3 & 7
    if top:
        stack = bytes(image[ST0 : ST0 + 128])
        for number in range(8):
            start = 16 * ((number - top) % 8)
            image[ST0 + 16 * number : ST0 + 16 * (number + 1)] = stack[start : start + 16]
    image[FSW + 1] &= ~0x38 & 0xFF
    image[FTW] = 0xFF


def _stack_fault(at: Refused, error: BaseException) -> BaseException:
    """An address that is not canonical is #SS where it was the stack's."""
    memory = at.instruction.memory
    if isinstance(error, Fault) and error.vector == GP and memory and memory.segment == "ss":
        return Fault(SS)
    return error


def _exception(number: int) -> Exception:
    """The exception that Unicorn raised by itself."""
    if number in (NM, MF, GP, UD):
        return Fault(number)
    if number == PF:
        return UnsupportedError("Unicorn raised a page fault of its own")
    return UnsupportedError(f"Unicorn raised exception {number}")
