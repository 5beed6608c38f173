"""Segment descriptors and gates, and the images of the tables that hold them (GDT, LDT, IDT, IVT).

A value here is a decoded descriptor; `encode` gives the bytes that the processor reads.  Limits are
in bytes, as in the hidden part of a segment register: the last valid offset.

>>> image = gdt([None, code(64), data(32)])
>>> image[8:16].hex()
'ffff0000009baf00'
>>> str(decode_segment(image, 0x10))
'data32 base=0 limit=ffffffff dpl=0 writable accessed'
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

__all__ = [
    "CODE16",
    "CODE32",
    "CODE64",
    "DATA",
    "DATA16",
    "TSS",
    "USER_CODE32",
    "USER_CODE64",
    "USER_DATA",
    "Descriptor",
    "FlatGdt",
    "Gate",
    "SegmentDescriptor",
    "call_gate",
    "code",
    "data",
    "decode_gate",
    "decode_segment",
    "flat_gdt",
    "gdt",
    "idt",
    "interrupt_gate",
    "ivt",
    "ldt",
    "task_gate",
    "trap_gate",
    "tss",
]

# Selectors of the table that flat_gdt() builds, requested privilege level included.  The order
# fits SYSCALL and SYSRET: STAR[47:32] = CODE64, STAR[63:48] = USER_CODE32 (SDM 3A 5.8.8).
CODE32 = 0x08
CODE64 = 0x10
DATA = 0x18
USER_CODE32 = 0x23
USER_DATA = 0x2B
USER_CODE64 = 0x33
TSS = 0x38
CODE16 = 0x48
DATA16 = 0x50

_GRANULE = 0x1000
_LIMIT_BITS = 20

# System descriptor types (SDM 3A 3.5, table 3-2) and how they read: in long mode the 16-bit ones
# and the task gate do not exist, and 9, B, C, E, F are the 64-bit forms.
_TSS16, _LDT, _CALL16, _TASK, _INT16, _TRAP16 = 0x1, 0x2, 0x4, 0x5, 0x6, 0x7
_TSS32, _CALL32, _INT32, _TRAP32 = 0x9, 0xC, 0xE, 0xF
_BUSY = 0x2
_SYSTEM_NAMES = {
    0x1: "tss16 available",
    0x2: "ldt",
    0x3: "tss16 busy",
    0x9: "tss32 available",
    0xB: "tss32 busy",
}
_GATE_NAMES = {
    _CALL16: "call gate 16",
    _TASK: "task gate",
    _INT16: "interrupt gate 16",
    _TRAP16: "trap gate 16",
    _CALL32: "call gate 32",
    _INT32: "interrupt gate 32",
    _TRAP32: "trap gate 32",
}


class SegmentDescriptor(NamedTuple):
    """A segment descriptor: code, data, LDT or TSS (SDM 3A 3.4.5, figure 3-8).

    Fields are named as in kvm_segment.  `limit` is in bytes: with `g` set its low 12 bits must be
    ones.  `long` means a 16-byte descriptor, the form of LDT and TSS in long mode.
    """

    base: int
    limit: int
    type: int
    s: int = 1
    dpl: int = 0
    present: int = 1
    avl: int = 0
    l: int = 0  # noqa: E741 - kvm_segment's name
    db: int = 0
    g: int = 0
    long: bool = False

    def encode(self) -> bytes:
        """The 8 bytes of the descriptor, 16 for a long one.

        Raises ConfigError for a field that does not fit, naming it.
        """
        _check("base", self.base, 64 if self.long else 32)
        _check("type", self.type, 4)
        _check("dpl", self.dpl, 2)
        limit = self.limit
        if self.g:
            if limit & (_GRANULE - 1) != _GRANULE - 1:
                raise ConfigError(
                    f"segment limit {limit:#x} does not end at a 4 KiB boundary",
                    hint="with g=1 the low 12 bits of the limit are ones",
                )
            limit //= _GRANULE
        _check("limit", limit, _LIMIT_BITS)
        if self.long and self.s:
            raise ConfigError("only a system descriptor (s=0) is 16 bytes long")
        base = self.base
        access = self.type | bool(self.s) << 4 | self.dpl << 5 | bool(self.present) << 7
        flags = bool(self.avl) | bool(self.l) << 1 | bool(self.db) << 2 | bool(self.g) << 3
        low = (
            (limit & 0xFFFF)
            | (base & 0xFFFFFF) << 16
            | access << 40
            | (limit >> 16) << 48
            | flags << 52
            | (base >> 24 & 0xFF) << 56
        )
        return (low | base >> 32 << 64).to_bytes(16 if self.long else 8, "little")

    @classmethod
    def decode(cls, raw: bytes, *, long: bool = False) -> SegmentDescriptor:
        """The descriptor in the first 8 bytes of `raw`, or 16 if `long` and it is a system one.

        Raises ConfigError if there are fewer.
        """
        low = _read(raw, 8)
        long = long and not low >> 44 & 1
        base = low >> 16 & 0xFFFFFF | (low >> 56 & 0xFF) << 24
        if long:
            base |= (_read(raw, 16) >> 64 & 0xFFFF_FFFF) << 32
        limit = low & 0xFFFF | low >> 32 & 0xF0000
        g = low >> 55 & 1
        return cls(
            base=base,
            limit=(limit << 12 | 0xFFF) if g else limit,
            type=low >> 40 & 0xF,
            s=low >> 44 & 1,
            dpl=low >> 45 & 3,
            present=low >> 47 & 1,
            avl=low >> 52 & 1,
            l=low >> 53 & 1,
            db=low >> 54 & 1,
            g=g,
            long=long,
        )

    @property
    def kind(self) -> str:
        """What it describes, in a word: ``"code64"``, ``"data32"``, ``"tss32 busy"``, ``"ldt"``."""
        if not self.s:
            name = _SYSTEM_NAMES.get(self.type, f"system type {self.type:x}")
            return name.replace("32", "64") if self.long else name
        if self.type & 8:
            return "code64" if self.l else "code32" if self.db else "code16"
        return "data32" if self.db else "data16"

    def __str__(self) -> str:
        words = [self.kind, f"base={self.base:x}", f"limit={self.limit:x}", f"dpl={self.dpl}"]
        if self.s:
            second, third = ("readable", "conforming") if self.type & 8 else ("writable", "down")
            words += [second] * bool(self.type & 2) + [third] * bool(self.type & 4)
            words += ["accessed"] * (self.type & 1)
        return " ".join(words + ["absent"] * (not self.present))


class Gate(NamedTuple):
    """A call, interrupt, trap or task gate (SDM 3A 5.8.3, 6.11, 6.14.1, 8.2.5).

    `long` means the 16-byte form of long mode, the only one with `ist`.  `parameters` is how
    many of them a call gate copies.
    """

    selector: int
    offset: int
    type: int
    dpl: int = 0
    present: int = 1
    ist: int = 0
    parameters: int = 0
    long: bool = False

    def encode(self) -> bytes:
        """The 8 bytes of the gate, 16 for a long one.

        Raises ConfigError for a field that does not fit, naming it.
        """
        if self.type not in _GATE_NAMES or (self.long and self.type < _CALL32):
            raise ConfigError(f"there is no {64 if self.long else 32}-bit gate of type {self.type}")
        wide = 64 if self.long else 32 if self.type >= _CALL32 else 16
        _check("offset", self.offset, wide)
        _check("selector", self.selector, 16)
        _check("dpl", self.dpl, 2)
        _check("ist", self.ist, 3 if self.long else 0)
        _check("parameters", self.parameters, 0 if self.long else 5)
        low = (
            (self.offset & 0xFFFF)
            | self.selector << 16
            | (self.ist | self.parameters) << 32
            | (self.type | self.dpl << 5 | bool(self.present) << 7) << 40
            | (self.offset >> 16 & 0xFFFF) << 48
        )
        return (low | self.offset >> 32 << 64).to_bytes(16 if self.long else 8, "little")

    @classmethod
    def decode(cls, raw: bytes, *, long: bool = False) -> Gate:
        """The gate in the first 8 bytes of `raw`, 16 if `long`.

        The type is not judged: a decoded gate may be none (see `kind`).  Raises ConfigError if
        there are fewer bytes.
        """
        low = _read(raw, 16 if long else 8)
        offset = low & 0xFFFF | (low >> 48 & 0xFFFF) << 16 | (low >> 64 & 0xFFFF_FFFF) << 32
        return cls(
            selector=low >> 16 & 0xFFFF,
            offset=offset,
            type=low >> 40 & 0x1F,
            dpl=low >> 45 & 3,
            present=low >> 47 & 1,
            ist=low >> 32 & 7 if long else 0,
            parameters=0 if long else low >> 32 & 0x1F,
            long=long,
        )

    @property
    def kind(self) -> str:
        """What it is: ``"interrupt gate 64"``, ``"task gate"``, or ``"no gate (type 0)"``."""
        name = _GATE_NAMES.get(self.type)
        if name is None or (self.long and self.type < _CALL32):
            return f"no gate (type {self.type:x})"
        return name.replace("32", "64") if self.long else name

    def __str__(self) -> str:
        words = [self.kind, f"{self.selector:04x}:{self.offset:x}", f"dpl={self.dpl}"]
        words += [f"ist={self.ist}"] * bool(self.ist)
        words += [f"parameters={self.parameters}"] * bool(self.parameters)
        return " ".join(words + ["absent"] * (not self.present))


Descriptor: TypeAlias = "SegmentDescriptor | Gate"


def code(
    bits: int,
    *,
    base: int = 0,
    limit: int | None = None,
    dpl: int = 0,
    readable: bool = True,
    conforming: bool = False,
    accessed: bool = True,
) -> SegmentDescriptor:
    """A code segment for 16, 32 or 64-bit code.

    `limit` defaults to all of the address space (64 KiB for 16 bits); one that does not fit 20 bits
    is counted in pages.  Raises ConfigError for other `bits`.

    >>> code(64).encode().hex()
    'ffff0000009baf00'
    """
    kind = 8 | bool(conforming) << 2 | bool(readable) << 1 | bool(accessed)
    return _segment(bits, (16, 32, 64), kind, base, limit, dpl)


def data(
    bits: int = 32,
    *,
    base: int = 0,
    limit: int | None = None,
    dpl: int = 0,
    writable: bool = True,
    expand_down: bool = False,
    accessed: bool = True,
) -> SegmentDescriptor:
    """A data or stack segment, 16 or 32 bits wide (long mode uses the 32-bit one).

    `limit` as in `code`.  For one that expands down it is the last offset *not* in the segment.

    >>> data(16).encode().hex()
    'ffff000000930000'
    """
    kind = bool(expand_down) << 2 | bool(writable) << 1 | bool(accessed)
    return _segment(bits, (16, 32), kind, base, limit, dpl)


def tss(
    base: int, limit: int = 0x67, *, bits: int = 64, busy: bool = False, dpl: int = 0
) -> SegmentDescriptor:
    """A TSS descriptor for a 16, 32 or 64-bit task state segment (SDM 3A 8.2.2, 8.2.3).

    LTR wants an available one and marks it busy.  `limit` is the last valid offset: 0x67 without an
    I/O permission bitmap, 0x2b for 16 bits.
    """
    kinds = {16: _TSS16, 32: _TSS32, 64: _TSS32}
    _choose("TSS", bits, tuple(kinds))
    return _system(kinds[bits] | (_BUSY if busy else 0), base, limit, dpl, long=bits == 64)


def ldt(base: int, limit: int, *, long: bool = True) -> SegmentDescriptor:
    """A descriptor of a local descriptor table, 16 bytes if `long` (SDM 3A 3.5.1)."""
    return _system(_LDT, base, limit, 0, long=long)


def interrupt_gate(
    selector: int, offset: int, *, bits: int = 64, dpl: int = 0, ist: int = 0
) -> Gate:
    """A gate that clears IF on entry, to `selector`:`offset`, of 16, 32 or 64 bits.

    `dpl` is the least privileged ring that may reach it by INT n.  `ist` picks a stack from the
    64-bit TSS.

    >>> interrupt_gate(0x10, 0xFFFF_8000_1234_5678).encode().hex()
    '78561000008e34120080ffff00000000'
    """
    return _gate(_INT16, _INT32, selector, offset, bits, dpl, ist, 0)


def trap_gate(selector: int, offset: int, *, bits: int = 64, dpl: int = 0, ist: int = 0) -> Gate:
    """A gate that leaves IF alone; otherwise as `interrupt_gate`."""
    return _gate(_TRAP16, _TRAP32, selector, offset, bits, dpl, ist, 0)


def call_gate(
    selector: int, offset: int, *, bits: int = 64, dpl: int = 0, parameters: int = 0
) -> Gate:
    """A call gate (SDM 3A 5.8.3); `parameters` are copied to the inner stack, none in 64."""
    return _gate(_CALL16, _CALL32, selector, offset, bits, dpl, 0, parameters)


def task_gate(selector: int, *, dpl: int = 0) -> Gate:
    """A task gate to the TSS at `selector`; long mode has none (SDM 3A 8.2.5)."""
    return Gate(selector, 0, _TASK, dpl)


def gdt(entries: Iterable[Descriptor | None]) -> bytes:
    """The image of a GDT or LDT: the entries one after another, None for an empty 8-byte slot.

    A selector is the entry's byte offset in the image; long entries take two slots.

    >>> len(gdt([None, code(64), data(32), tss(0x5000)]))
    40
    """
    return b"".join(bytes(8) if entry is None else entry.encode() for entry in entries)


def idt(gates: Mapping[int, Gate], *, bits: int = 64, vectors: int = 256) -> bytes:
    """The image of an IDT with room for `vectors`; vectors without a gate are not present.

    `bits` is 64 for 16-byte slots, else 8-byte slots.  Raises ConfigError for a vector outside
    `vectors` or a gate of the wrong size.

    >>> idt({3: interrupt_gate(0x10, 0x1000)}, vectors=4)[48:].hex()
    '00101000008e00000000000000000000'
    """
    size = 16 if bits == 64 else 8
    image = bytearray(size * vectors)
    for vector, gate in gates.items():
        if not 0 <= vector < vectors:
            raise ConfigError(f"vector {vector} is outside an IDT of {vectors} vectors")
        raw = gate.encode()
        if len(raw) != size:
            raise ConfigError(f"vector {vector}: {gate.kind} does not fit a {bits}-bit IDT")
        image[vector * size : (vector + 1) * size] = raw
    return bytes(image)


def ivt(handlers: Mapping[int, tuple[int, int]]) -> bytes:
    """The image of a real-mode interrupt vector table: 256 far pointers (SDM 3B 21.1.4).

    `handlers` maps a vector to (segment, offset); the others point to 0000:0000.

    >>> ivt({1: (0xF000, 0x1234)})[:8].hex()
    '00000000341200f0'
    """
    image = bytearray(4 * 256)
    for vector, (segment, offset) in handlers.items():
        _check("vector", vector, 8)
        _check("segment", segment, 16)
        _check("offset", offset, 16)
        image[4 * vector : 4 * vector + 4] = (segment << 16 | offset).to_bytes(4, "little")
    return bytes(image)


def decode_segment(image: bytes, selector: int, *, long: bool = False) -> SegmentDescriptor:
    """The descriptor that `selector` names in a GDT or LDT image; its TI and RPL bits are ignored.

    Raises ConfigError if the table ends before it.
    """
    offset = selector & ~7
    return SegmentDescriptor.decode(image[offset : offset + 16], long=long)


def decode_gate(image: bytes, vector: int, *, bits: int = 64) -> Gate:
    """The gate for `vector` in an IDT image, with 16-byte slots for 64 `bits`, else 8-byte ones.

    Raises ConfigError if the table ends before it.
    """
    size = 16 if bits == 64 else 8
    return Gate.decode(image[vector * size : (vector + 1) * size], long=bits == 64)


class FlatGdt(NamedTuple):
    """The GDT that the states of `pykvm.x86.entry` use: put `image` at their `gdt.base`."""

    image: bytes

    @property
    def limit(self) -> int:
        """The limit for GDTR: the last valid offset."""
        return len(self.image) - 1


def flat_gdt(tss_base: int = 0) -> FlatGdt:
    """A GDT with flat code and data for rings 0 and 3 and a busy TSS at `tss_base`.

    The selectors are this module's `CODE32`, `CODE64`, `DATA`, `USER_CODE32`, `USER_DATA`,
    `USER_CODE64`, `TSS`, `CODE16` and `DATA16`.  The TSS takes two slots; below 4 GiB the first of
    them is a proper 32-bit TSS descriptor too, so one table serves 32-bit and long mode.

    >>> gdt = flat_gdt(0x5000)
    >>> hex(gdt.limit), str(decode_segment(gdt.image, TSS, long=True))
    ('0x57', 'tss64 busy base=5000 limit=67 dpl=0')
    """
    _check("base", tss_base, 64)
    return FlatGdt(_FLAT_LOW + tss(tss_base, busy=True).encode() + _FLAT_HIGH)


def _segment(
    bits: int, choices: tuple[int, ...], kind: int, base: int, limit: int | None, dpl: int
) -> SegmentDescriptor:
    """A code or data descriptor with the flags that `bits` and the size of `limit` ask for."""
    _choose("segment", bits, choices)
    if limit is None:
        limit = 0xFFFF if bits == 16 else 0xFFFF_FFFF
    g = int(limit >> _LIMIT_BITS > 0)
    return SegmentDescriptor(
        base, limit, kind, s=1, dpl=dpl, l=int(bits == 64), db=int(bits == 32), g=g
    )


def _system(kind: int, base: int, limit: int, dpl: int, *, long: bool) -> SegmentDescriptor:
    return SegmentDescriptor(
        base, limit, kind, s=0, dpl=dpl, g=int(limit >> _LIMIT_BITS > 0), long=long
    )


def _gate(
    kind16: int,
    kind32: int,
    selector: int,
    offset: int,
    bits: int,
    dpl: int,
    ist: int,
    parameters: int,
) -> Gate:
    _choose("gate", bits, (16, 32, 64))
    kind = kind16 if bits == 16 else kind32
    return Gate(selector, offset, kind, dpl, 1, ist, parameters, long=bits == 64)


def _read(raw: bytes, size: int) -> int:
    if len(raw) < size:
        raise ConfigError(f"the table ends within a descriptor: {len(raw)} of {size} bytes")
    return int.from_bytes(raw[:size], "little")


def _check(name: str, value: int, bits: int) -> None:
    if value < 0 or value >> bits:
        raise ConfigError(f"{name} {value:#x} does not fit {bits} bits")


def _choose(what: str, bits: int, choices: tuple[int, ...]) -> None:
    if bits not in choices:
        raise ConfigError(f"a {what} of {bits} bits: choose from {', '.join(map(str, choices))}")


_FLAT_LOW = gdt(
    [None, code(32), code(64), data(), code(32, dpl=3), data(dpl=3), code(64, dpl=3)],
)
_FLAT_HIGH = gdt([code(16), data(16)])
