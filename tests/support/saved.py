"""Whether what is saved of a device is all that a guest could notice: one test for any device.

A program is a list of steps; somewhere in it the state is saved, and goes to JSON and back.  A new
device that is restored from it, in a world whose host has another time, has to answer the rest as
the first one does: what is read, what lines do and when, what deadlines there are.  So has the
first, restored after it has run on.
"""

from __future__ import annotations

import json
import time
import typing
from collections.abc import Callable, Mapping
from itertools import product
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from clock.fake_host import Host
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.bus import Bus, GuestEnd, Space
from pykvm.bus.dispatch import Dispatch
from pykvm.clock import ClockState
from pykvm.devices.line import Output
from pykvm.errors import ConfigError
from pykvm.interrupts import GpFault
from pykvm.values import state as states
from pykvm.values.state import State, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Fronts",
    "Step",
    "Subject",
    "World",
    "damaged",
    "each",
    "programs",
    "restored_goes_on",
    "strangers_state_is_harmless",
]

#: What is done, and with what: ("read", 0, 1), ("wait", 50), or an action of the subject's.
Step = tuple[Any, ...]

#: Lines of a world, and queues of deadlines that are looked at.
LINES = 32
QUEUES = 2
MILLISECOND = 1_000_000


class Line:
    """A line that logs its changes, with their guest times."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self.level = False

    def set(self, level: bool, /) -> None:
        assert self._world.live, "a line is driven by what only restores"
        self.level = bool(level)
        self._world.log.append((self._world.clock.now(), self._number, self.level))

    def restore(self, level: bool) -> None:
        self.level = level


class World:
    """What is around a device: guest time that moves when told to, and lines that remember."""

    def __init__(self, now: int = 5_000_000_000) -> None:
        self.host = Host(now)
        self.clock = self.host.clock()
        self.log: list[Any] = []
        self.live = True
        self.lines = [Line(self, number) for number in range(LINES)]
        #: Levels that others drive to the device's inputs: they are saved with it.
        self.inputs: dict[str, Output] = {}

    def note(self, *what: object) -> None:
        """Log something that the device does to the world."""
        assert self.live, f"{what} comes of what only restores"
        self.log.append((self.clock.now(), *what))

    def isa(self, irq: int, /) -> Line:
        """As `Lines.isa`."""
        return self.lines[irq]

    def input(self, name: str, line: Any) -> None:
        """A wire to the device, that the step ("input", name, level) drives."""
        self.inputs[name] = Output(line)

    @property
    def deadlines(self) -> list[int | None]:
        return [self.clock.next_deadline(queue) for queue in range(QUEUES)]

    def wait(self, ns: int) -> None:
        """Let time pass, with each deadline on time."""
        end = self.host.now + ns
        for _ in range(300):
            due = [when for when in self.deadlines if when is not None]
            away = max(min(due) - self.clock.now(), 0) if due else ns
            if self.host.now + away > end:
                break
            self.host.now += away
            self.run()
        self.host.now = end

    def run(self) -> None:
        for queue in range(QUEUES):
            self.clock.run_due(queue)


class Fronts:
    """Ports that C answers where it can: by (device, first, length) each.

    It gives C the time; no answer may depend on less than a millisecond.
    """

    def __init__(self, world: World, *places: tuple[Any, int, int]) -> None:
        self._clock = world.clock
        self._bus = Bus()
        self.dispatch = Dispatch(self._bus)
        self.dispatch.collected.follow(world.clock)
        self.dispatch.collected.on_urgent = self._hurry
        self._urgent = False
        #: How many accesses needed no Python.
        self.answered = 0
        for device, first, length in places:
            self._bus.add_pio(first, length, device)
        self.dispatch.rebuild()

    def _hurry(self) -> None:
        self._urgent = True

    def settle(self) -> None:
        if self._urgent:
            self._urgent = False
            self.dispatch.deliver()

    def _find(self, port: int) -> tuple[Any, Any, int]:
        range_ = self._bus.find(Space.PIO, port)
        assert range_ is not None
        _, published = self.dispatch._published.get(id(range_.device), (None, None))
        self.dispatch.collected.set_time(time.monotonic_ns() - self._clock.now())
        return range_, published, port - range_.first

    def read(self, port: int, size: int) -> int:
        range_, published, offset = self._find(port)
        if published is not None:
            value = published.read(offset, size)
            if value is not None:
                self.answered += 1
                return int(value)
        self.dispatch.deliver()
        return int(range_.read(offset, size))

    def write(self, port: int, size: int, value: int) -> None:
        range_, published, offset = self._find(port)
        if published is not None and published.write(offset, size, value):
            self.answered += 1
            return
        self.dispatch.deliver()
        range_.write(offset, size, value)


class Subject:
    """A device in its world, and what can be done to it beside reading and writing.

    `access` is what answers reads and writes, else the device; `actions` are by name.  Each may
    end the guest.
    """

    def __init__(
        self,
        world: World,
        device: Any,
        actions: Mapping[str, Callable[..., object]] | None = None,
        *,
        access: Any = None,
    ) -> None:
        self.world = world
        self.device = device
        access = device if access is None else access
        self._front = access if isinstance(access, Fronts) else None
        self._actions: dict[str, Callable[..., object]] = {
            "read": lambda offset, size: access.read(offset, size) & (1 << 8 * size) - 1,
            "write": lambda offset, size, value: access.write(offset, size, value),
            "wait": world.wait,
            "stall": self._stall,
            "run": world.run,
            "input": lambda name, level: world.inputs[name].set(bool(level)),
            **(actions or {}),
        }

    def _stall(self, ns: int) -> None:
        self.world.host.now += ns

    def step(self, step: Step) -> Any:
        """What comes of a step: its answer, what it did to the world, what it left to do."""
        self.world.log.clear()
        try:
            answer = self._actions[step[0]](*step[1:])
        except (GuestEnd, GpFault) as end:
            answer = type(end).__name__, str(end)
        if self._front is not None:
            self._front.settle()
        return step, answer, tuple(self.world.log), self.world.deadlines

    def play(self, program: list[Step]) -> list[Any]:
        return [self.step(step) for step in program]

    def save(self) -> tuple[Any, ...]:
        """The clock, the device, the levels of its inputs and those of its lines."""
        if self._front is not None:
            self._front.dispatch.deliver()
        world = self.world
        world.live = False
        device = self.device.state()
        world.live = True
        return (
            world.clock.state(),
            device,
            tuple(output.state() for output in world.inputs.values()),
            tuple(line.level for line in world.lines),
            world.host.now % MILLISECOND,
        )

    def load(self, saved: tuple[Any, ...]) -> None:
        """Be what was saved."""
        clock, device, inputs, _, rest = saved
        world = self.world
        # No host's TSC is within a tick of what it was elsewhere; here it is in its fractions, too.
        world.host.now += (rest - world.host.now) % MILLISECOND
        world.live = False
        if self._front is not None:
            self._front.dispatch.discard()
        try:
            world.clock.restore(clock)
            self.device.restore(device)
            for output, level in zip(world.inputs.values(), inputs, strict=True):
                output.restore(level)
        finally:
            world.live = True


def through_json(saved: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a file would bring back."""
    clock, device, *others = saved
    text = json.dumps(encode(device))
    again = decode(json.loads(text), type(device) if isinstance(device, State) else object)
    clock = decode(json.loads(json.dumps(encode(clock))), ClockState)
    return clock, again, *others


def check_saved(make: Callable[[World], Subject], program: list[Step], cut: int) -> None:
    """Save after `cut` steps of the program, restore here and elsewhere, and compare the rest."""
    first, rest = program[:cut], program[cut:]
    subject = make(World())
    subject.play(first)
    saved = subject.save()
    assert subject.save() == saved, "saving changed it"

    told = subject.play(rest)
    fresh = make(World(now=77_000_000_000))
    fresh.load(through_json(saved))
    assert fresh.save() == saved
    fresh.load(saved)
    assert fresh.play(rest) == told

    # It has run on since: by the rest of the program, and by its beginning again.
    for more in ([], [("wait", 1_500_000_000), *first]):
        subject.play(more)
        subject.load(saved)
        assert subject.save() == saved
        subject.load(saved)
        assert subject.play(rest) == told


def check_hostile(
    make: Callable[[World], Subject], program: list[Step], clock: ClockState, state: object
) -> None:
    """Restore what a stranger wrote: it is refused, or answers whatever comes."""
    subject = make(World())
    # The program has begun, so there is something to be overwritten.
    subject.play(program[: len(program) // 2])
    subject.world.clock.restore(clock)
    try:
        subject.device.restore(state)
    except ConfigError:
        return
    subject.play(program)
    subject.play([("wait", 10**9), ("stall", 10**12), ("run",), *program])
    encode(subject.device.state())


#: Time that passes: with each deadline on time, or without a look at any.
PASSING: tuple[Step, ...] = (
    *(("wait", ns) for ns in (1, 838, 15_085, 50_001, 999_999, 50_000_001, 1_000_000_007)),
    *(("stall", ns) for ns in (1, 15_085, 50_001, 999_999, 1_000_000_007)),
    ("run",),
)


class Programs(NamedTuple):
    """What a guest may do, and how a look at all there is ends it."""

    steps: st.SearchStrategy[list[Step]]
    end: list[Step]


#: By name: what makes one, and what may be done to it.
Cases = Mapping[str, tuple[Callable[[World], Subject], Programs]]


def programs(*chunks: Step | list[Step], look: Iterable[Step] = (), size: int = 20) -> Programs:
    """Programs of these, each a step or several in a row, and of time that passes.

    At the end each of them looks at all there is, with time in between.
    """
    rows = [chunk if isinstance(chunk, list) else [chunk] for chunk in (*chunks, *PASSING)]
    end = [*look, ("wait", 40_000), *look, ("stall", 2_000_000_000), ("run",), *look]
    parts = st.lists(st.sampled_from(rows), min_size=1, max_size=size)
    return Programs(parts.map(lambda parts: [step for part in parts for step in part]), end)


def each(name: str, *choices: Iterable[object]) -> list[Step]:
    """The steps of that name with any of these: ``each("read", (0, 1), (1,))``."""
    return [(name, *arguments) for arguments in product(*choices)]


@st.composite
def cut_programs(draw: st.DrawFn, programs: Programs) -> tuple[list[Step], int]:
    """A program, and after how many steps of it the state is saved."""
    steps = draw(programs.steps)
    # Late is better: there is more to be saved.
    cut = len(steps) - draw(st.integers(0, len(steps)))
    return [*steps, *programs.end], cut


@st.composite
def hostile_cases(
    draw: st.DrawFn, make: Callable[[World], Subject], programs: Programs
) -> tuple[list[Step], ClockState, Any]:
    """A program, and what a stranger has made of a state and the time that it is of."""
    steps = draw(programs.steps)
    subject = make(World())
    subject.play(steps)
    clock, state, *_ = subject.save()
    return [*steps, *programs.end], clock, draw(damaged(state))


def restored_goes_on(cases: Cases) -> Callable[..., None]:
    """A test for each of these: restored from its state, it goes on as the first."""

    @pytest.mark.parametrize("name", cases)
    @given(data=st.data())
    def test(name: str, data: st.DataObject) -> None:
        make, program = cases[name]
        check_saved(make, *data.draw(cut_programs(program)))

    made: Callable[..., None] = test
    return made


def strangers_state_is_harmless(cases: Cases) -> Callable[..., None]:
    """A test for each of these: a state of a stranger's is refused, or does no harm."""

    @pytest.mark.parametrize("name", cases)
    @settings(max_examples=50)
    @given(data=st.data())
    def test(name: str, data: st.DataObject) -> None:
        make, program = cases[name]
        check_hostile(make, *data.draw(hostile_cases(make, program)))

    made: Callable[..., None] = test
    return made


@st.composite
def damaged(draw: st.DrawFn, value: Any, kind: Any = None) -> Any:
    """A state of the same class with other values in it, as far as the annotations allow."""
    if isinstance(value, State) and (kind is None or draw(st.integers(0, 9))):
        fields = states._hints(type(value))
        wrong = draw(st.sets(st.sampled_from(sorted(fields)), min_size=1, max_size=3))
        return value.__replace__(
            **{
                name: draw(damaged(getattr(value, name), fields[name]))
                for name in wrong  # in any order: they are independent
            }
        )
    if isinstance(value, tuple) and value and (kind is None or draw(st.integers(0, 9))):
        arguments = typing.get_args(kind) or (None, ...)
        number = draw(st.integers(0, len(value) - 1))
        changed = draw(damaged(value[number], arguments[0 if arguments[1:] == (...,) else number]))
        return (*value[:number], changed, *value[number + 1 :])
    return draw(values_of(type(value) if kind is None else kind))


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Whatever an annotation allows."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return st.one_of(*(values_of(argument) for argument in arguments))
    if isinstance(kind, states._Number):
        limits = kind.limits
        low, high = limits.start, limits.stop - 1
        edges = {low, low + 1, 0, 1, 2, high // 2, high - 1, high, 1 << 62}
        edge = st.sampled_from(sorted(edge for edge in edges if low <= edge <= high))
        return st.one_of(edge, st.integers(low, min(high, 1000)), st.integers(low, high))
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is ...:
            return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
        return st.tuples(*(values_of(argument) for argument in arguments))
    if kind is type(None):
        return st.none()
    simple = {int: st.integers(), bool: st.booleans(), bytes: st.binary(), str: st.text()}
    if kind in simple:
        return simple[kind]
    if kind is object:
        return st.none() | st.integers() | st.binary()
    return st.builds(kind, **{name: values_of(hint) for name, hint in states._hints(kind).items()})
