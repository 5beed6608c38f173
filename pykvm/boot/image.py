"""What a boot protocol makes of a guest file, and what it leaves in a machine."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from pykvm.boot.source import Content, Source
    from pykvm.boot.symbols import Symbols
    from pykvm.tables import Hardware
    from pykvm.x86.state import CpuState, Mode

__all__ = ["Entry", "Image", "Module", "Range", "Segment", "Setup"]


class Range(NamedTuple):
    """A named piece of guest-physical memory, `end` exclusive.

    >>> str(Range("stack", 0x1000, 0x11000))
    'stack (0x1000-0x11000)'
    """

    name: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.name} ({self.start:#x}-{self.end:#x})"

    def overlaps(self, other: Range) -> bool:
        """Whether a byte belongs to both; an empty range overlaps nothing."""
        return max(self.start, other.start) < min(self.end, other.end)


class Segment(NamedTuple):
    """Bytes of the file and the zeros after them, at a guest-physical address.

    `name` is for messages and memory maps; `size` counts the zeros too, so len(data) <= size.
    """

    name: str
    address: int
    data: Content
    size: int
    executable: bool = True
    writable: bool = True

    @property
    def end(self) -> int:
        """The first address after the segment."""
        return self.address + self.size

    @property
    def range(self) -> Range:
        """The segment as a piece of guest memory."""
        return Range(self.name, self.address, self.end)


class Image(NamedTuple):
    """A guest file, parsed and checked; nothing of a machine is known yet.

    `kind` is "elf64", "elf32", "flat", "firmware", "linux" for a Linux kernel, "bzimage" for one
    that only starts as Linux does, or else a kernel's protocol; `mode` the CPU mode at `entry`, a
    guest-physical address; `protocol` the name of the boot protocol that reads and places it;
    `word` the size in bytes of a pointer in the guest's program; `details` are what the protocol
    has read and needs again to place it.
    """

    name: str
    kind: str
    protocol: str
    mode: Mode
    entry: int
    segments: tuple[Segment, ...]
    symbols: Symbols
    word: int
    details: object = None

    def moved(self, distance: int) -> Image:
        """The image with its segments and entry `distance` higher, the rest as it is."""
        segments = (one._replace(address=one.address + distance) for one in self.segments)
        return self._replace(entry=self.entry + distance, segments=tuple(segments))


class Module(NamedTuple):
    """A file that the guest finds in memory, and the words that go with it."""

    source: Source
    command_line: str = ""


class Setup(NamedTuple):
    """What a guest is to find beside its image.

    `append` is the command line of a kernel; a bare guest gets its words, then `args`, as argv.
    `initrd` is a Linux kernel's initial RAM disk, `modules` are what a multiboot or PVH kernel
    gets.  `hardware` describes the machine to kernels that read tables about it.  `kernel` is what
    firmware is to boot, with `append` and `initrd`.
    """

    append: str = ""
    args: tuple[str, ...] = ()
    initrd: Source | None = None
    modules: tuple[Module, ...] = ()
    hardware: Hardware | None = None
    kernel: Source | None = None

    @property
    def words(self) -> str:
        """`append` and `args` as one line."""
        return " ".join(filter(None, (self.append, *self.args)))


class Entry(NamedTuple):
    """How the first vCPU starts a placed image.

    `state` is to be set on the vCPU; `layout` names what lies where in guest memory, by address.
    `remarks` are sentences on what was done otherwise than the user may expect; `suspicions` are
    for a run that ends in a crash: what the guest may have missed.
    """

    state: CpuState
    layout: tuple[Range, ...]
    symbols: Symbols
    remarks: tuple[str, ...] = ()
    suspicions: tuple[str, ...] = ()
