"""Instructions that come again are done by the run loop, and give what they gave in Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulate.cases import ALL, LOOSE, Case
from emulate.refusing import REFUSES
from pykvm import Machine, Mode, Outcome
from pykvm.x86.registers import CR4
from support.host import require_host

pytestmark = pytest.mark.kvm

DATA, SIZE = 0x10_000, 0x200
ROUNDS = 3
# Not every processor keeps x87's pointers without an exception (APM 2 11.4.4, FXSAVE).
FOP, MXCSR, XSTATE_BV = 6, 24, 512
# What loads control words could unmask exceptions; some have other operands than [rdi].
OTHERS = {"fldcw", "fldenv", "frstor", "rip relative", "fs segment", "sib", *LOOSE}
CASES = [
    case
    for case in ALL
    if case.group in ("sse", "mmx", "x87", "sse4", "aes") and case.name not in OTHERS
]


def run(cases: list[Case], data: bytes, *, watched: bool) -> tuple[Any, ...]:
    """The cases three times over in ring 0: what is there in the end, and how it came about."""
    body = b"".join(case.code for case in cases)
    loop = body + bytes.fromhex("ffcb0f85") + (-(len(body) + 8)).to_bytes(4, "little", signed=True)
    code = b"\xbb" + ROUNDS.to_bytes(4, "little") + loop + bytes.fromhex("31c0e6f4f4")
    with Machine(code, mode=Mode.LONG, memory="4M", cpu="host") as machine:
        cpu = machine.vcpus[0]
        machine.memory.write(DATA, data)
        state = cpu.state
        state.cr4 |= CR4.OSFXSR | CR4.OSXMMEXCPT
        state.rdi = DATA + 0x40
        cpu.state = state
        seen: list[str] = []
        if watched:
            machine.on_emulated(lambda cpu, name, result: seen.append(name))
        result = machine.run(timeout=30)
        assert result.outcome is Outcome.EXITED, (result, body.hex())
        registers = {name: getattr(cpu.regs, name) for name in ("rax", "rcx", "rdx", "rdi", "rbx")}
        memory, xsave = machine.memory.read(DATA, SIZE), bytearray(cpu.kvm.get_xsave())
        xsave[FOP:MXCSR] = bytes(MXCSR - FOP)
        # A component may be in its initial state, or have that state by its contents.
        xsave[XSTATE_BV : XSTATE_BV + 8] = bytes(8)
        return registers, cpu.regs.rflags, memory, xsave, result.emulated, len(seen), result


@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=12), st.binary(max_size=SIZE))
@settings(max_examples=25)
def test_learnt_instructions_give_what_python_gives(cases: list[Case], data: bytes) -> None:
    require_host(REFUSES)
    for group in {case.group for case in cases}:
        require_host(f"processor-has-{group}")
    *slow, seen, _ = run(cases, data.ljust(SIZE, b"\x3f"), watched=True)
    *quick, unseen, _ = run(cases, data.ljust(SIZE, b"\x3f"), watched=False)
    assert quick == slow
    assert (seen, unseen) == (sum(slow[-1].values()), 0)


@pytest.mark.needs_host(REFUSES)
def test_consecutive_instructions_make_one_exit() -> None:
    (addps,) = (case for case in ALL if case.name == "addps")
    *_, emulated, _, result = run([addps] * 20, bytes(SIZE), watched=False)
    assert emulated == {"addps": 20 * ROUNDS}
    assert result.exits["InternalError"] == 20 + ROUNDS - 1
    assert 0 < result.emulated_seconds <= result.outside_seconds


@pytest.mark.needs_host(REFUSES)
def test_subscribers_hear_of_each_until_they_end() -> None:
    (addps,) = (case for case in ALL if case.name == "addps")
    with Machine(addps.code + b"\xf4", mode=Mode.LONG, memory="4M") as machine:
        cpu = machine.vcpus[0]
        state = cpu.state
        state.cr4 |= CR4.OSFXSR | CR4.OSXMMEXCPT
        state.rdi = DATA
        first: list[tuple[int, str]] = []
        second: list[str] = []

        def refuse(cpu: object, name: str, result: str) -> None:
            raise LookupError(name)

        def run() -> None:
            cpu.state = state
            machine.run(timeout=30)

        ends = [
            machine.on_emulated(lambda cpu, name, result: first.append((cpu.index, name))),
            machine.on_emulated(lambda cpu, name, result: second.append(name)),
        ]
        run()
        assert (first, second) == ([(0, "addps")], ["addps"])
        ends[0]()
        run()
        assert (len(first), len(second)) == (1, 2)
        ends.append(machine.on_emulated(refuse))
        with pytest.raises(LookupError, match="addps"):
            run()
        ends[2]()
        ends[1]()
        run()
        assert (len(first), len(second)) == (1, 3)
