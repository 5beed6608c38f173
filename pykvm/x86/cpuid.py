"""CPUID as a table: read by feature name, and filtered to what a guest shall see.

`select` is what a machine needs: it takes the entries of KVM_GET_SUPPORTED_CPUID (any objects with
the fields of kvm_cpuid_entry2) and a specification such as ``"baseline,+avx2,-x2apic"``.
`CpuidTable` is for looking at one.

>>> table = CpuidTable([CpuidEntry(1, 0, 0, 0x000A0671, 0, 0, 1 << 25)])
>>> sorted(table.features), table.signature
(['sse'], (6, 167, 1))
"""

from __future__ import annotations

import functools
import struct

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.x86.cpuid_features import ALIASES, FEATURES, REGISTERS, WORDS, canonical, reported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Protocol

    from pykvm.x86.cpuid_features import Bit

    class Entry(Protocol):
        """What this module reads of a struct kvm_cpuid_entry2."""

        @property
        def function(self) -> int:
            """The leaf."""

        @property
        def index(self) -> int:
            """The subleaf."""

        @property
        def flags(self) -> int:
            """Whether the subleaf matters: SIGNIFICANT_INDEX."""

        @property
        def eax(self) -> int:
            """What the guest gets in EAX."""

        @property
        def ebx(self) -> int:
            """What the guest gets in EBX."""

        @property
        def ecx(self) -> int:
            """What the guest gets in ECX."""

        @property
        def edx(self) -> int:
            """What the guest gets in EDX."""


__all__ = [
    "BASELINE",
    "LAPIC_FEATURES",
    "MODELS",
    "SIGNIFICANT_INDEX",
    "CpuidEntry",
    "CpuidTable",
    "Specification",
    "missing",
    "select",
    "with_topology",
    "without",
]

# kvm_cpuid_entry2.flags: `index` matters (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
SIGNIFICANT_INDEX = 1

# psABI x86-64, table 3.1: what each level adds to the one before.
_LEVELS = {
    "x86-64-v1": "cmov cx8 fpu fxsr mmx sse sse2 syscall",
    "x86-64-v2": "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3",
    "x86-64-v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "x86-64-v4": "avx512bw avx512cd avx512dq avx512f avx512vl",
}
# What an operating system on any such processor finds besides, where the host has it.
_SYSTEM = (
    "tsc msr pae mce apic sep mtrr pge mca pat pse pse36 vme de clflush ss ht nx lm "
    "hypervisor x2apic tsc_deadline_timer arat invtsc "
    "kvmclock kvmclock2 kvmclock_stable kvm_nopiodelay kvm_steal_time"
)
_COMMON = frozenset(_SYSTEM.split())


def _levels() -> dict[str, frozenset[str]]:
    """Each level with those below it."""
    levels: dict[str, frozenset[str]] = {}
    names: frozenset[str] = frozenset()
    for level, added in _LEVELS.items():
        names = levels[level] = names.union(added.split())
    return levels


MODELS = _levels()
"""The features that make each of the psABI's levels, by the level's name.

A guest gets all of them or, where the host does not offer one, an error; and the same things of an
operating system's as in BASELINE, where the host has them.
"""

BASELINE = _COMMON | MODELS["x86-64-v2"] - {"cx16"}
"""The features that a guest sees unless told otherwise.

It is what every KVM host of the last ten years has, so that a guest does the same on all of them:
x86-64-v2, the timers and the paravirtual clock.  What a host does not offer is missing without a
word.  Left out on purpose:

- AVX and XSAVE, and so x86-64-v3: their state is large, and a kernel that finds XSAVE must use it.
- cx16, though x86-64-v2 has it: software backends of KVM report it and then refuse CMPXCHG16B in
  kernel code.  64-bit Windows needs it: ``"baseline,+cx16"``.
- all of leaf 7 (SMEP, SMAP, FSGSBASE, ERMS ...): hosts differ most there.
- 1 GiB pages, PCID and RDTSCP, which not every host can give.
- the paravirtual features that work by hypercall (IPIs, yield, unhalt) or inject a fault of their
  own (asynchronous page faults).
"""

LAPIC_FEATURES = frozenset({"apic", "x2apic", "tsc_deadline_timer", "arat", "kvm_pv_eoi"})
"""What a guest must not see on a machine without a local APIC."""

# Leaves without feature bits that describe any processor: identification, caches, topology, TSC and
# bus frequency, brand, address sizes.
_DESCRIPTIVE = frozenset(
    {0x0, 0x1, 0x2, 0x4, 0xB, 0x15, 0x16, 0x4000_0000, 0x8000_0000}
    | {0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006, 0x8000_0008}
)
# Leaves that describe a feature and go with it.
_DEPENDENT = {0xD: "xsave", 0x14: "intel_pt", 0x19: "key_locker", 0x1D: "amx_tile"}
_DEPENDENT |= {0x1E: "amx_tile", 0x5: "monitor", 0x12: "sgx", 0x8000_000A: "svm"}
# State components of XSAVE beyond x87 and SSE, and the feature that each belongs to (SDM 1 13.1).
_XSAVE_COMPONENTS = dict.fromkeys((5, 6, 7), "avx512f") | {2: "avx", 3: "mpx", 4: "mpx", 9: "pku"}
_XSAVE_COMPONENTS |= {8: "intel_pt", 10: "enqcmd", 11: "shstk", 12: "shstk", 14: "uintr"}
_XSAVE_COMPONENTS |= {15: "arch_lbr", 17: "amx_tile", 18: "amx_tile"}
_XSAVE_LEGACY_SIZE = 512 + 64
# In ECX of leaf 7.
_LA57 = 1 << 16
# The first leaf of each range holds the number of the last.
_RANGES = (0x0, 0x4000_0000, 0x8000_0000)
# CPUID.1:EDX
_HT = 1 << 28


class CpuidEntry(NamedTuple):
    """One leaf or subleaf, fields as in kvm_cpuid_entry2."""

    function: int
    index: int  # type: ignore[assignment]  # the kernel's name wins over tuple.index
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int

    def __str__(self) -> str:
        values = " ".join(f"{name}={getattr(self, name):08x}" for name in REGISTERS)
        return f"{self.function:08x}.{self.index:x} {values}"


def select(
    entries: Iterable[Entry], spec: str = "baseline", *, remove: Iterable[str] = ()
) -> list[CpuidEntry]:
    """The entries that a guest shall see, made from those that the host offers.

    `spec` starts with "baseline" (see BASELINE), "host" (all that is offered) or the name of one of
    MODELS; ``+name`` and ``-name`` after it, separated by commas or blanks, add and remove a
    feature, and so do ``name=on`` and ``name=off``.  Names are Linux's or QEMU's.  A spec of
    changes alone starts from the baseline.  A feature takes its leaves with it, and the numbers of
    the last leaves are made to fit.  `remove` names features that go whatever `spec` says.

    Raises ConfigError for an unknown feature, one that the host does not offer, or a wrong spec.

    >>> host = [CpuidEntry(1, 0, 0, 0, 0, 1 << 13 | 1 << 20, 0), CpuidEntry(3, 0, 0, 0, 0, 0, 0)]
    >>> [hex(entry.ecx) for entry in select(host)]
    ['0x100000']
    >>> [hex(entry.ecx) for entry in select(host, "+cx16,-sse4_2")]
    ['0x2000']
    """
    offered = [_copy(entry) for entry in entries]
    wanted = Specification.parse(spec)
    lacking = missing(offered, wanted)
    if lacking:
        raise _refusal(wanted, lacking)
    removed = wanted.removed.union(remove)
    if wanted.model == "host":
        return without(offered, removed) if removed else offered
    shown = _COMMON | MODELS[wanted.model] if wanted.model in MODELS else BASELINE
    return _only(offered, (shown | wanted.added) - removed)


class Specification(NamedTuple):
    """A choice of CPUID features in words: a model, and what is added to it and removed."""

    model: str
    added: frozenset[str]
    removed: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Specification:
        """The specification that `text` stands for; see `select`.

        Raises ConfigError for an unknown model or feature, and for one both added and removed.

        >>> Specification.parse("x86-64-v2,-popcnt").model
        'x86-64-v2'
        """
        words = text.replace(",", " ").split()
        changes_only = not words or words[0][0] in "+-" or "=" in words[0]
        model = "baseline" if changes_only else words.pop(0)
        if model not in ("baseline", "host", *MODELS):
            known = ", ".join(("baseline", "host", *MODELS))
            hint = "QEMU's max is host" if model == "max" else f"choose from {known}"
            raise ConfigError(f"there is no CPU model {model!r}", hint=hint)
        changes: dict[str, set[str]] = {"+": set(), "-": set()}
        for word in words:
            sign, name = _change(word)
            if sign not in changes:
                raise ConfigError(f"{word!r} in the CPU {text!r}", hint=f"write +{word} or -{word}")
            changes[sign].add(_named(name))
        both = changes["+"] & changes["-"]
        if both:
            raise ConfigError(f"the CPU {text!r} both adds and removes {min(both)}")
        return cls(model, frozenset(changes["+"]), frozenset(changes["-"]))


def _change(word: str) -> tuple[str, str]:
    """The sign and the name in "+name", "-name", "name=on" and "name=off", as QEMU takes them."""
    name, equals, state = word.partition("=")
    if equals and name and state in ("on", "off"):
        return ("+" if state == "on" else "-"), name
    return word[0], word[1:]


def missing(entries: Iterable[Entry], wanted: Specification) -> list[str]:
    """What `wanted` insists on and the host, which offers `entries`, does not have."""
    needed = (MODELS.get(wanted.model, frozenset()) | wanted.added) - wanted.removed
    if not needed:
        return []
    table = CpuidTable(entries)
    return [name for name in sorted(needed) if name not in table]


def _refusal(wanted: Specification, lacking: list[str]) -> ConfigError:
    names = ", ".join(lacking)
    if wanted.added.issuperset(lacking):
        return ConfigError(
            f"this host's KVM does not offer guests {names}",
            hint="leave it out, or set the bit with CpuidTable.with_features and see",
        )
    without = ",".join(f"-{name}" for name in lacking)
    return ConfigError(
        f"this host's KVM cannot give guests an {wanted.model}: it does not offer {names}",
        hint=f"take baseline, or do without: {wanted.model},{without}",
    )


def with_topology(entries: Iterable[Entry], *, apic_id: int, count: int) -> list[CpuidEntry]:
    """The entries for one vCPU of `count`, all cores of one package, with its APIC id.

    Sets the ids and counts in leaf 1, the sharing of caches in leaves 4 and 0x8000001D, the cores
    in 0x80000008, the ids in 0x8000001E, and leaves 0xB and 0x1F anew where the table has them
    (SDM 2A CPUID; SDM 3A 9.9.1; APM 3 E.4).

    >>> leaf = CpuidEntry(1, 0, 0, 0, 0x0300_0800, 0, 0)
    >>> hex(with_topology([leaf], apic_id=2, count=4)[0].ebx)
    '0x2040800'
    """
    width = (count - 1).bit_length()
    result = []
    for e in entries:
        leaf = _copy(e)
        if leaf.function == 1:
            ebx = leaf.ebx & 0xFFFF | min(count, 255) << 16 | (apic_id & 0xFF) << 24
            leaf = leaf._replace(ebx=ebx, edx=leaf.edx | _HT if count > 1 else leaf.edx & ~_HT)
        elif leaf.function == 4 and leaf.eax & 0x1F:
            # Levels 1 and 2 belong to a core, the last one to the package.
            shared = (1 << width) - 1 if leaf.eax >> 5 & 7 >= 3 else 0
            cores = min((1 << width) - 1, 0x3F)
            leaf = leaf._replace(eax=leaf.eax & 0x3FFF | shared << 14 | cores << 26)
        elif leaf.function == 0x8000_0008:
            leaf = leaf._replace(ecx=leaf.ecx & ~0xF0FF | (count - 1) & 0xFF | width << 12)
        elif leaf.function == 0x8000_001D and leaf.eax & 0x1F:
            shared = count - 1 if leaf.eax >> 5 & 7 >= 3 else 0
            leaf = leaf._replace(eax=leaf.eax & ~(0xFFF << 14) | (shared & 0xFFF) << 14)
        elif leaf.function == 0x8000_001E:
            # One thread a core, one node.
            leaf = leaf._replace(eax=apic_id, ebx=apic_id & 0xFF, ecx=0)
        elif leaf.function in (0xB, 0x1F):
            if leaf.index == 0:
                flags = leaf.flags | SIGNIFICANT_INDEX
                result += _topology(leaf.function, flags, apic_id, count, width)
            continue
        result.append(leaf)
    return result


# struct kvm_cpuid2: what comes before its entries, and an entry.
_PACKED_HEAD = 8
_PACKED = struct.Struct("<7I12x")


class CpuidTable:
    """A set of CPUID leaves, for reading; the methods that change something return a new table.

    Leaves are ordered by number.  ``"sse2" in table`` asks for a feature.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = sorted(map(_copy, entries))
        self._by_leaf = {(entry.function, entry.index): entry for entry in self._entries}

    @classmethod
    def of_packed(cls, packed: bytes | bytearray) -> CpuidTable:
        """A struct kvm_cpuid2; what is no whole entry at its end counts for nothing."""
        entries = packed[_PACKED_HEAD:]
        whole = len(entries) - len(entries) % _PACKED.size
        return cls(CpuidEntry(*entry) for entry in _PACKED.iter_unpack(entries[:whole]))

    def __iter__(self) -> Iterator[CpuidEntry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuidTable) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def get(self, leaf: int, subleaf: int = 0) -> CpuidEntry | None:
        """The entry of a leaf and subleaf, or None."""
        return self._by_leaf.get((leaf, subleaf))

    def __contains__(self, feature: str) -> bool:
        bit = _feature(feature)
        entry = self.get(bit.leaf, bit.subleaf)
        return entry is not None and bool(getattr(entry, bit.register) >> bit.bit & 1)

    @property
    def features(self) -> frozenset[str]:
        """The names of all features in the table."""
        found: set[str] = set()
        for (leaf, subleaf, register), bits in WORDS.items():
            entry = self.get(leaf, subleaf)
            if entry is not None:
                value = entry[3 + register]
                found.update(name for bit, name in enumerate(bits) if value >> bit & 1)
        return frozenset(found - {"-"})

    @property
    def vendor(self) -> str:
        """The vendor of leaf 0, as ``"GenuineIntel"``; empty if the leaf is missing."""
        return self._text(0, ("ebx", "edx", "ecx"))

    @property
    def hypervisor(self) -> str:
        """The signature of leaf 0x40000000, as ``"KVMKVMKVM"``; empty if the leaf is missing."""
        return self._text(0x4000_0000, ("ebx", "ecx", "edx"))

    @property
    def brand(self) -> str:
        """The processor's name from leaves 0x80000002 to 0x80000004."""
        leaves = range(0x8000_0002, 0x8000_0005)
        return "".join(self._text(leaf, REGISTERS) for leaf in leaves).strip()

    @property
    def signature(self) -> tuple[int, int, int]:
        """Family, model and stepping as displayed (SDM 2A CPUID, leaf 1 EAX)."""
        entry = self.get(1)
        eax = entry.eax if entry is not None else 0
        family, model = eax >> 8 & 0xF, eax >> 4 & 0xF
        if family in (0x6, 0xF):
            model |= eax >> 12 & 0xF0
        if family == 0xF:
            family += eax >> 20 & 0xFF
        return family, model, eax & 0xF

    @property
    def maxphyaddr(self) -> int:
        """The number of physical address bits; 36 where the table does not say."""
        entry = self.get(0x8000_0008)
        return entry.eax & 0xFF if entry is not None else 36

    def filter(self, spec: str) -> CpuidTable:
        """What `select` makes of this table."""
        return CpuidTable(select(self._entries, spec))

    def with_features(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> CpuidTable:
        """The table with feature bits set and cleared, whatever the host offers.

        Leaves that a new feature needs are added.  Raises ConfigError for an unknown name.
        """
        gone = frozenset(map(_named, remove))
        leaves = {(entry.function, entry.index): entry for entry in without(self._entries, gone)}
        for name in add:
            leaf, subleaf, register, bit = _feature(name)
            flags = SIGNIFICANT_INDEX if leaf in (0x7, 0xD) else 0
            entry = leaves.get((leaf, subleaf), CpuidEntry(leaf, subleaf, flags, 0, 0, 0, 0))
            value = getattr(entry, register) | 1 << bit
            leaves[leaf, subleaf] = entry._replace(**{register: value})
        return CpuidTable(leaves.values())

    def _text(self, leaf: int, registers: Sequence[str]) -> str:
        entry = self.get(leaf)
        if entry is None:
            return ""
        raw = b"".join(getattr(entry, name).to_bytes(4, "little") for name in registers)
        return raw.rstrip(b"\0").decode("latin-1")

    def __str__(self) -> str:
        import textwrap

        family, model, stepping = self.signature
        title = f"{self.vendor} family {family:#x} model {model:#x} stepping {stepping}"
        names = textwrap.fill(" ".join(sorted(self.features)), 98, break_on_hyphens=False)
        lines = [title, self.brand, f"hypervisor {self.hypervisor}" * bool(self.hypervisor)]
        lines += [names, *map(str, self._entries)]
        return "\n".join(line for line in lines if line)


def _copy(entry: Entry) -> CpuidEntry:
    if type(entry) is CpuidEntry:
        return entry
    return CpuidEntry(
        entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx
    )


def _feature(name: str) -> Bit:
    """Where the feature is reported first."""
    return reported(_named(name))[0]


def _named(name: str) -> str:
    """The name in FEATURES; ConfigError with the nearest ones for one unknown."""
    known = canonical(name)
    if known not in FEATURES:
        import difflib

        all_names = sorted((*FEATURES, *ALIASES))
        near = [canonical(one) for one in difflib.get_close_matches(known, all_names)]
        raise ConfigError(
            f"there is no CPUID feature {name!r}",
            hint=f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "",
        )
    return known


@functools.cache
def _bits(names: frozenset[str]) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    """The bits of the features `names` in each leaf and subleaf that reports any feature."""
    bits = {(leaf, subleaf): [0, 0, 0, 0] for leaf, subleaf, _ in WORDS}
    for (leaf, subleaf, register), word in WORDS.items():
        bits[leaf, subleaf][register] = sum(
            1 << bit for bit, name in enumerate(word) if name in names
        )
    return {leaf: (eax, ebx, ecx, edx) for leaf, (eax, ebx, ecx, edx) in bits.items()}


def _only(entries: list[CpuidEntry], names: frozenset[str]) -> list[CpuidEntry]:
    """The entries with no feature but `names`, and only the leaves that still have content."""
    bits = _bits(names)
    telling = _DESCRIPTIVE | {leaf for leaf, name in _DEPENDENT.items() if name in names}
    masked = []
    for entry in entries:
        leaf, subleaf, flags, *values = entry
        mask = bits.get((leaf, subleaf))
        if mask is not None:
            for register in range(4):
                if (leaf, subleaf, register) in WORDS:
                    values[register] &= mask[register]
                    if values[register]:
                        telling |= {leaf}
            entry = CpuidEntry(leaf, subleaf, flags, *values)
        masked.append(entry)
    kept = [entry for entry in masked if entry.function in telling]
    gone = frozenset(_XSAVE_COMPONENTS.values()) - names
    return _fit_ranges(_fit_addresses(_fit_xsave(kept, gone)))


def without(entries: Iterable[Entry], names: frozenset[str]) -> list[CpuidEntry]:
    """The entries without the features `names` and the leaves that describe them."""
    bits = _bits(names)
    kept = []
    for entry in map(_copy, entries):
        leaf, subleaf, flags, eax, ebx, ecx, edx = entry
        if _DEPENDENT.get(leaf) in names:
            continue
        a, b, c, d = bits.get((leaf, subleaf), (0, 0, 0, 0))
        kept.append(CpuidEntry(leaf, subleaf, flags, eax & ~a, ebx & ~b, ecx & ~c, edx & ~d))
    return _fit_ranges(_fit_addresses(_fit_xsave(kept, names)))


def _fit_xsave(entries: list[CpuidEntry], gone: frozenset[str]) -> list[CpuidEntry]:
    """Leaf 0xD without the state components whose features are gone (SDM 1 13.2)."""
    without = sum(1 << number for number, name in _XSAVE_COMPONENTS.items() if name in gone)
    if not without or not any(entry.function == 0xD for entry in entries):
        return entries
    size = _XSAVE_LEGACY_SIZE
    result = []
    for entry in entries:
        if entry.function == 0xD and entry.index > 1:
            if without >> entry.index & 1:
                continue
            # ECX[0]: managed by XSS, so in no standard-format area.
            if not entry.ecx & 1:
                size = max(size, entry.ebx + entry.eax)
        result.append(entry)
    for at, entry in enumerate(result):
        if entry.function == 0xD and entry.index == 0:
            ebx = min(entry.ebx, size)
            entry = entry._replace(eax=entry.eax & ~without, ebx=ebx, ecx=size)
        elif entry.function == 0xD and entry.index == 1:
            entry = entry._replace(ecx=entry.ecx & ~without)
        result[at] = entry
    return result


def _fit_addresses(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    """Leaf 0x80000008 with 48 bits of linear address at most, where there is no 5-level paging.

    A processor with LA57 says 57 there, whatever CR4 has (SDM 2A CPUID; SDM 3A 4.5).
    """
    if any(entry.function == 7 and not entry.index and entry.ecx & _LA57 for entry in entries):
        return entries
    return [
        entry._replace(eax=entry.eax & ~0xFF00 | min(entry.eax >> 8 & 0xFF, 48) << 8)
        if entry.function == 0x8000_0008
        else entry
        for entry in entries
    ]


def _fit_ranges(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    """Make the number of the last leaf in each range, and of the last subleaf of leaf 7, true."""
    last = dict.fromkeys(_RANGES, 0)
    subleaf = 0
    for entry in entries:
        start = entry.function & 0xC000_0000
        last[start] = max(last.get(start, 0), entry.function)
        if entry.function == 7:
            subleaf = max(subleaf, entry.index)
    return [
        entry._replace(eax=last[entry.function])
        if entry.function in _RANGES
        else entry._replace(eax=subleaf)
        if entry.function == 7 and entry.index == 0
        else entry
        for entry in entries
    ]


def _topology(leaf: int, flags: int, apic_id: int, count: int, width: int) -> list[CpuidEntry]:
    """Leaf 0xB or 0x1F for cores of one thread: SMT level, core level, the end (SDM 2A CPUID)."""
    smt, core = 1 << 8, 2 << 8
    return [
        CpuidEntry(leaf, 0, flags, 0, 1, smt, apic_id),
        CpuidEntry(leaf, 1, flags, width, count, core | 1, apic_id),
        CpuidEntry(leaf, 2, flags, 0, 0, 2, apic_id),
    ]
