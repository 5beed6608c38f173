"""The instructions that are done here, in Python: by spelling, the mnemonic and what does it."""

from __future__ import annotations

from pykvm.emulate.bits import BIT_OPERATIONS
from pykvm.emulate.control import CONTROL_OPERATIONS
from pykvm.emulate.events import EVENT_OPERATIONS
from pykvm.emulate.features import features_of
from pykvm.emulate.hints import HINT_OPERATIONS
from pykvm.emulate.legacy import LEGACY_OPERATIONS
from pykvm.emulate.returns import RETURN_OPERATIONS
from pykvm.emulate.segments import SEGMENT_OPERATIONS
from pykvm.emulate.spelling import name_of, spellings
from pykvm.emulate.units import Unit, unit_of
from pykvm.emulate.vector import VECTOR_OPERATIONS
from pykvm.emulate.x87 import X87_OPERATIONS
from pykvm.emulate.xstate import XSTATE_OPERATIONS
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.emulate.refused import Operations, Refused
    from pykvm.x86.decode import Instruction

__all__ = ["OPERATIONS", "Method", "method_of"]

OPERATIONS: Operations = {
    **BIT_OPERATIONS,
    **CONTROL_OPERATIONS,
    **EVENT_OPERATIONS,
    **HINT_OPERATIONS,
    **LEGACY_OPERATIONS,
    **RETURN_OPERATIONS,
    **SEGMENT_OPERATIONS,
    **VECTOR_OPERATIONS,
    **X87_OPERATIONS,
    **XSTATE_OPERATIONS,
}


class Method(NamedTuple):
    """How an instruction is done: by `operation`, or on this processor if it has a `unit`.

    A processor without one of `features` raises #UD.
    """

    instruction: Instruction
    name: str
    operation: Callable[[Refused], None] | None
    unit: Unit | None
    features: tuple[str, ...]


def method_of(instruction: Instruction) -> Method:
    """Look up how an instruction is done."""
    features = features_of(instruction)
    for spelling in spellings(instruction):
        found = OPERATIONS.get(spelling)
        if found is not None:
            return Method(instruction, found[0], found[1], None, features or ())
    unit = unit_of(instruction) if features is not None else None
    return Method(instruction, name_of(instruction), None, unit, features or ())
