"""What a device publishes of its registers, so that accesses to them need no Python.

A device that has `publish` is given a `Published` when it is put in its place.  There it says of a
register what reads give until it says otherwise, and which writes can wait; C then answers
(pykvm/_core/published.c).  What is published never changes what the guest or the device sees: it
must be what `read` would give and what `write` could as well be told later.

>>> class Switch:
...     name = "switch"
...     state = 0
...
...     def publish(self, published):
...         self.registers = published
...         published.lay_out([(0, 1)])
...         published.set(0, Rule(reads=self.state))
...
...     def read(self, offset, size):
...         return self.state
...
...     def write(self, offset, size, value):
...         self.state = value & 1
...         self.registers.set(0, Rule(reads=self.state))
>>> switch, published = Switch(), Published(Shared(), 1)
>>> switch.publish(published)
>>> published.read(0, 1)
0
>>> switch.write(0, 1, 3)
>>> published.read(0, 1), published.write(0, 1, 0)
(1, False)
"""

from __future__ import annotations

import itertools
import struct
from errno import ENOMEM
from functools import lru_cache

from pykvm._core import ffi, lib, owned
from pykvm.errors import ConfigError, StateError, resource_error
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

__all__ = [
    "ALWAYS",
    "CAPTURED",
    "WRITTEN",
    "Access",
    "Counter",
    "Dropped",
    "Published",
    "Publishing",
    "Replaying",
    "Rule",
    "Shared",
    "as_accesses",
    "as_writes",
]

#: `Rule.until` of what holds until the device says otherwise.
ALWAYS = (1 << 64) - 1
#: `Rule.after_write`: the bank whose number was written, modulo the number of banks.
WRITTEN: int = lib.PYKVM_WRITTEN_BANK

_SAME: int = lib.PYKVM_SAME_BANK
_MASK64 = (1 << 64) - 1
# struct pykvm_write: all of it, and what `posted` gets of it.
_ACCESS = struct.Struct("<QIIQQ")
_WRITE = struct.Struct("<QI4xQ8x")
# The tags of tables are no slots of a bus.
_TAG = 1 << 63

#: One posted access: offset, size, whether it was a read, what was written or what the read gave,
#: and its guest time, if the rule is `timed`.
Access = tuple[int, int, int, int, int]


def as_accesses(data: memoryview) -> list[Access]:
    """The accesses to a table's registers that `Shared.take` has brought."""
    return list(_ACCESS.iter_unpack(data))


def as_writes(data: memoryview) -> list[tuple[int, int, int]]:
    """The posted writes that `Shared.take` has brought: (offset, size, value) each."""
    return list(_WRITE.iter_unpack(data))


class Counter(NamedTuple):
    """A register that counts guest time: `base` + `step` * n, modulo 2**64.

    n is `start` + ns * `multiply` // `divide`, modulo 2**64 and then `modulo`, if there is one.
    """

    multiply: int
    divide: int
    start: int = 0
    modulo: int = 0
    base: int = 0
    step: int = 1


class _Captured:
    """The kind of `CAPTURED`."""

    def __repr__(self) -> str:
        return "CAPTURED"


#: `Rule.reads`: what a write has captured.
CAPTURED = _Captured()


class Rule(NamedTuple):
    """What becomes of accesses to a register.

    `reads` is what they give, a number, a `Counter` or `CAPTURED`, or None: the device is asked.
    `until` is the guest time, in ns, from which on it is asked all the same; `mask` is laid over
    the value, of which reads give what is from bit `shift` on.  With `told`, the device is told
    later, by `replay`, of each read that was answered for it.

    With `posts`, writes are posted: they reach the device later, in order, by `replay` or, without
    that, by `write`; but not those whose low byte is in `prompt`.  `stores` makes what was written
    what reads give from then on.

    With `takes`, writes but those in `prompt` are done with: the device never hears of them, and
    finds out by `Published.exchange` or `recall` what they changed.  Such a write captures what
    the register of number `captures` gives in this bank, before the shift.

    `after_read` and `after_write` are the bank that is chosen by an access that the device was not
    asked for, or `WRITTEN`.  Posted accesses reach the device before any later access to any device
    does, and within 50 ms; `within` is a shorter time, in ns, where an interrupt hangs on them (20
    times that while the guest has interrupts off), and `most` how many writes may wait that no
    posted read lies between.  `timed` keeps their guest time.
    """

    reads: int | Counter | _Captured | None = None
    until: int = ALWAYS
    mask: int = _MASK64
    shift: int = 0
    told: bool = False
    after_read: int = _SAME
    posts: bool = False
    prompt: bytes = b""
    stores: bool = False
    after_write: int = _SAME
    within: int = 0
    most: int = 0
    timed: bool = False
    takes: bool = False
    captures: int | None = None


class Dropped(NamedTuple):
    """An access that no device claimed."""

    pio: bool
    address: int
    size: int
    #: What was written; None for a read.
    value: int | None

    def __str__(self) -> str:
        where = f"{'port' if self.pio else 'address'} {self.address:#x}"
        size = "1 byte" if self.size == 1 else f"{self.size} bytes"
        if self.value is None:
            return f"read of {size} at {where}"
        return f"write of {self.value:#x} ({size}) at {where}"


class TimeTeller(Protocol):
    """A clock that relates guest time to CLOCK_MONOTONIC: `pykvm.clock.Clock`."""

    def publish(self, publish: Callable[[int | None], None], /) -> None:
        """Call ``publish(base)`` as `Shared.set_time` wants it, now and at each change."""


class Shared:
    """What the vCPUs of a machine share in C: what was collected, and what the time is."""

    def __init__(self) -> None:
        core = owned(lib.pykvm_shared_new, lib.pykvm_shared_free)
        if core == ffi.NULL:
            raise resource_error("no room for the buffers of collected writes", ENOMEM)
        #: struct pykvm_shared
        self.core: Any = core
        #: Called, in any thread, when what a device published has changed while accesses wait for
        #: it: they are to be handed over soon.
        self.on_urgent: Callable[[], None] | None = None
        #: Whose time it is that `Counter` and `Rule.until` go by.
        self.clock: TimeTeller | None = None

    def follow(self, clock: TimeTeller) -> None:
        """Go by this clock's guest time from now on."""
        self.clock = clock
        clock.publish(self.set_time)

    def set_time(self, base: int | None) -> None:
        """Guest time is CLOCK_MONOTONIC less `base`, in ns; None: it stands still."""
        lib.pykvm_set_time(self.core, -(1 << 63) if base is None else base)

    @property
    def waiting(self) -> bool:
        """Whether collected accesses have not been taken yet."""
        return bool(lib.pykvm_waiting(self.core))

    def take(self) -> list[tuple[int, memoryview]]:
        """What was collected, in order: (slot or tag, for `as_writes` or `as_accesses`) each."""
        core = self.core
        count = lib.pykvm_take(core)
        if not count:
            return []
        data = memoryview(ffi.buffer(core.writes, count * _ACCESS.size)[:])
        taken = []
        at = 0
        for batch in ffi.unpack(core.batches, core.batch_count):
            end = at + batch.count * _ACCESS.size
            taken.append((batch.slot, data[at:end]))
            at = end
        return taken

    @property
    def open_bus(self) -> bool:
        """Whether what no device claims is dropped, and reads give all ones."""
        return bool(self.core.open_bus)

    @open_bus.setter
    def open_bus(self, on: bool) -> None:
        self.core.open_bus = on

    @property
    def prompt(self) -> bool:
        """Whether every write reaches its device at once, unless that has `posted`."""
        return bool(self.core.prompt)

    @prompt.setter
    def prompt(self, on: bool) -> None:
        self.core.prompt = on

    def forget_drops(self) -> None:
        """A run begins: `drops` counts from here."""
        core = self.core
        core.drops[0] = core.drops[1] = 0
        core.place_counts[0] = core.place_counts[1] = 0

    def drops(self, *, writes: bool) -> tuple[int, list[Dropped]]:
        """How many reads or `writes` were dropped in this run, and the first at some places."""
        core = self.core
        places = [
            Dropped(
                place.space == lib.PYKVM_PIO,
                place.address,
                place.size,
                place.value if writes else None,
            )
            for place in ffi.unpack(core.places[writes], core.place_counts[writes])
        ]
        return core.drops[writes], places

    def drop(
        self, *, pio: bool, address: int, size: int, value: int | None, count: int = 1
    ) -> None:
        """Count `count` accesses more that no device claimed."""
        lib.pykvm_drop(
            self.core,
            lib.PYKVM_PIO if pio else lib.PYKVM_MMIO,
            value is not None,
            address,
            size,
            (value or 0) & _MASK64,
            count,
        )


class Publishing(Protocol):
    """A device that publishes; all three methods beside `publish` are optional as ever."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def publish(self, published: Published, /) -> None:
        """Lay out the registers, and keep `published` to set rules by."""


class Replaying(Protocol):
    """A publishing device that takes what was posted in bulk."""

    def replay(self, accesses: Sequence[Access], /) -> None:
        """Take what the guest did, oldest first: as `write`, or as a read that gave the value."""


_tags = itertools.count(_TAG)


class Published:
    """What one device has published.  Any thread may call any method.

    `length` is how many offsets the device has.
    """

    def __init__(self, shared: Shared, length: int) -> None:
        self.shared = shared
        self.length = length
        #: What `Shared.take` calls this device's accesses by.
        self.tag = next(_tags)
        self.core: Any = None
        self.banks = 1
        #: Whether C drives the device's interrupt line; see `wire`.
        self.wired = False
        #: The offsets whose writes are always posted.
        self.always: tuple[int, ...] = ()
        self._rules: dict[tuple[int, int], Rule | None] = {}
        # Registers whose banks have rules of their own.
        self._apart: set[int] = set()

    def lay_out(
        self,
        registers: Iterable[tuple[int, int]],
        *,
        banks: int = 1,
        always: Sequence[int] = (),
    ) -> None:
        """The registers are (offset, size in bytes) each; `set` calls them by their place in this.

        There are as many rules for each register as `banks`, of which one is chosen; at first 0 is.
        Writes to the offsets in `always` are posted whatever comes: the kernel may collect them.
        Raises ConfigError for what does not lie in the device, StateError the second time.
        """
        if self.core is not None:
            raise StateError("a device's registers are laid out once")
        places = list(registers)
        new, free = lib.pykvm_table_new, lib.pykvm_table_free
        core = owned(new, free, self.shared.core, self.tag, self.length, len(places), banks)
        if core == ffi.NULL:
            what = f"{len(places)} registers in {banks} banks over {self.length} offsets"
            if 0 < len(places) < 1 << 16 and 0 < banks <= 256 and 0 < self.length <= 1 << 16:
                raise resource_error(f"no room for {what}", ENOMEM)
            raise ConfigError(
                f"{what}: there are 1 to 65,535 of them, 1 to 256 banks and up to 65,536 offsets"
            )
        for number, (offset, size) in enumerate(places):
            if lib.pykvm_table_place(core, number, offset, size):
                raise ConfigError(
                    f"a register of {size} bytes at offset {offset:#x}: it has 1 to 8, and lies "
                    f"below {self.length:#x}"
                )
        self.banks = banks
        self.always = tuple(always)
        self.core = core

    def set(self, register: int, rule: Rule | None, *, bank: int | None = None) -> None:
        """From now on `rule` holds for a register, None for: ask the device.

        In all banks, or in `bank`.
        """
        everywhere = bank is None
        number = lib.PYKVM_ALL_BANKS if bank is None else bank
        # A stored value is the core's.
        same = self._rules.get((register, number), self) == rule and not (rule and rule.stores)
        if same and not (everywhere and register in self._apart):
            return
        if everywhere and register in self._apart:
            self._apart.discard(register)
            self._rules = {key: old for key, old in self._rules.items() if key[0] != register}
        elif not everywhere:
            self._apart.add(register)
        self._rules[register, number] = rule
        core = ffi.NULL if rule is None else _in_c(rule)
        self._note(lib.pykvm_table_set(self.core, register, number, core))

    def knows(self, clock: object) -> bool:
        """Whether `Counter` and `Rule.until` go by this clock: not before that is made."""
        known = self.shared.clock
        # A device that was attached before has something that stands for the clock.
        return known is not None and (clock is known or getattr(clock, "source", None) is known)

    def choose(self, bank: int) -> None:
        """The rules of this bank hold from now on."""
        result = lib.pykvm_table_choose(self.core, bank)
        if result:
            self._note(result)

    @property
    def bank(self) -> int:
        """The bank that is chosen."""
        bank: int = lib.pykvm_table_bank(self.core)
        return bank

    def exchange(self, bank: int) -> tuple[int, int]:
        """Choose a bank; return the one that was chosen until then, and what was captured last.

        That is one moment: accesses are answered before it or go by `bank`.
        """
        before, captured = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        self._note(lib.pykvm_table_exchange(self.core, bank, before, captured))
        return int(before[0]), int(captured[0])

    def recall(self, bank: int) -> int:
        """Choose a bank; return how many writes were taken (`Rule.takes`) since the last `choose`.

        That is one moment, as for `exchange`.  The next call returns them again, until `choose`.
        """
        result: int = lib.pykvm_table_recall(self.core, bank)
        if result < 0 or result & 1:
            self._note(result)
        return result >> 1

    def wire(self, line: object, levels: int = 0) -> bool:
        """Have C drive `line` from now on, if it can: return whether it does, as `wired` says.

        While bank n is chosen, the line has the level of bit n in `levels`, and the device leaves
        it alone.  C can drive those of KVM's own interrupt controllers, for up to 64 banks.
        """
        core = getattr(line, "core", ffi.NULL)
        self._note(lib.pykvm_table_wire(self.core, core, levels))
        self.wired = core != ffi.NULL
        return self.wired

    def drive(self, levels: int, *, bank: int | None = None) -> None:
        """Give the banks of the line other levels, and choose `bank`, if any, at that moment."""
        number = lib.PYKVM_ALL_BANKS if bank is None else bank
        self._note(lib.pykvm_table_drive(self.core, levels, number))

    def restore(self, bank: int, *, levels: int = 0) -> None:
        """Choose `bank`, with these levels of the line for the banks, and leave the line alone."""
        self._note(lib.pykvm_table_restore(self.core, levels, bank))

    def pulse(self, bank: int, *, through: int) -> None:
        """If `bank` is chosen, give the line the level of another bank for a moment."""
        self._note(lib.pykvm_table_pulse(self.core, bank, through))

    def withdraw(self) -> None:
        """Have the device asked, whatever it is, and drive its line itself."""
        if self.wired:
            self.wire(None)
        for register in {register for register, _ in self._rules}:
            self.set(register, None)

    def _note(self, result: int) -> None:
        if result < 0:
            raise ConfigError(
                "no such register or bank, a counter that divides by 0, or a shift over 63"
            )
        if result and self.shared.on_urgent is not None:
            self.shared.on_urgent()

    def read(self, offset: int, size: int) -> int | None:
        """What a read gives, or None if the device has to be asked."""
        value, within = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        answered = lib.pykvm_table_read(self.core, offset, size, value, within)
        return int(value[0]) if answered else None

    def write(self, offset: int, size: int, value: int) -> bool:
        """Whether a write was posted or taken; else it is the device's."""
        within = ffi.new("uint64_t *")
        return bool(lib.pykvm_table_write(self.core, offset, size, value & _MASK64, within))


@lru_cache(maxsize=512)
def _in_c(rule: Rule) -> Any:
    """A struct pykvm_rule, which is not to be changed."""
    core = ffi.new("struct pykvm_rule *")
    reads = rule.reads
    if isinstance(reads, Counter):
        core.reads, core.value = lib.PYKVM_COUNTER, reads.start & _MASK64
        core.multiply, core.divide = reads.multiply, reads.divide
        core.modulo, core.base, core.step = reads.modulo, reads.base & _MASK64, reads.step
    elif isinstance(reads, _Captured):
        core.reads = lib.PYKVM_CAPTURED
    elif reads is not None:
        core.reads, core.value = lib.PYKVM_VALUE, reads & _MASK64
    core.until, core.mask, core.shift = rule.until, rule.mask, rule.shift
    core.told, core.after_read = rule.told, rule.after_read
    core.writes = lib.PYKVM_POST if rule.posts else lib.PYKVM_TAKE if rule.takes else 0
    core.captures = lib.PYKVM_NO_REGISTER if rule.captures is None else rule.captures
    core.stores, core.after_write = rule.stores, rule.after_write
    core.within, core.most, core.timed = rule.within, rule.most, rule.timed
    for byte in rule.prompt:
        core.prompt[byte // 8] |= 1 << byte % 8
    return core
