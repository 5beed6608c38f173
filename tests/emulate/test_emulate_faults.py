"""Exceptions that completed instructions raise, and devices that they reach."""

from __future__ import annotations

import pytest

from emulate.facts import CMPXCHG16B, CVTDQ2PD, HANDED_OVER, PUNPCKL, X87_PENDING
from emulate.rig import BORDER, CODE, DATA, DEVICE, KERNEL_STACK, MISSING, READ_ONLY, Rig
from pykvm.x86.registers import CR0, CR4
from support.host import require_host

pytestmark = pytest.mark.kvm

PRESENT, WRITE, USER = 1, 2, 4
READ, STORE = "f30f6f07", "f30f7f07"  # movdqu xmm0, [rdi] and the other way round
VECTOR = bytes(range(0x30, 0x40))


def vectors(rig: Rig, mxcsr: int = 0x1F80) -> bytes:
    """An image with VECTOR in every vector register, twice."""
    image = bytearray(rig.pristine)
    image[160:416] = VECTOR * 16
    image[576:832] = VECTOR * 16
    image[24:28] = mxcsr.to_bytes(4, "little")
    image[512] = 7
    return bytes(image)


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize(
    ("code", "size", "address", "error"),
    [
        (READ, 16, MISSING, 0),
        (STORE, 16, MISSING, WRITE),
        (STORE, 16, READ_ONLY, WRITE | PRESENT),
        ("0fae1f", 4, MISSING, WRITE),
        ("660fd607", 8, MISSING, WRITE),
        ("c5fe7f07", 32, MISSING, WRITE),
        ("f30fb807", 4, MISSING, 0),
        ("480fc70f", 16, MISSING, WRITE),
        ("480fae27", 832, MISSING, WRITE),
        ("480fae2f", 832, MISSING, 0),
        ("dd37", 108, MISSING, WRITE),
    ],
)
@pytest.mark.parametrize("forced", [False, True])
def test_page_fault(
    rig: Rig, code: str, size: int, address: int, error: int, ring: int, forced: bool
) -> None:
    """Vector, error code, CR2; RIP on the instruction and the registers as before."""
    if code == "480fc70f" and not forced:
        require_host(CMPXCHG16B)
    before = rig.completed
    registers = {"rdi": address, "rax": 7, "rdx": 0}
    outcome = rig.run(
        bytes.fromhex(code), ring, registers=registers, xsave=vectors(rig), forced=forced
    )
    assert outcome.exception is not None
    *fault, cr2 = outcome.exception
    assert fault == [14, error | (USER if ring else 0)]
    # Processors differ in which byte of an operand they touch first.
    assert cr2 == address if rig.completed > before else address <= cr2 < address + size
    assert outcome.advanced == 0
    assert outcome.registers["rax"] == 7
    assert outcome.registers["rdi"] == address


@pytest.mark.parametrize("code", [READ, STORE])
def test_a_page_fault_in_the_second_page_names_it(rig: Rig, code: str) -> None:
    native = rig.run(bytes.fromhex(code), 3, registers={"rdi": MISSING - 8})
    forced = rig.run(bytes.fromhex(code), 3, registers={"rdi": MISSING - 8}, forced=True)
    assert forced.exception == native.exception
    assert forced.exception is not None
    assert forced.exception[2] == MISSING


def test_the_supervisor_writes_to_a_read_only_page_without_cr0_wp(rig: Rig) -> None:
    outcome = rig.run(
        bytes.fromhex(STORE), 0, registers={"rdi": READ_ONLY}, cr0=-CR0.WP, xsave=vectors(rig),
        forced=True,
    )  # fmt: skip
    assert outcome.exception is None
    assert rig.machine.memory.read(READ_ONLY, 16) == VECTOR
    rig.machine.memory.fill(READ_ONLY, 16)


@pytest.mark.parametrize(("smap", "allowed"), [(False, True), (True, False)])
def test_smap_holds_for_completed_instructions(rig: Rig, smap: bool, allowed: bool) -> None:
    code = bytes.fromhex(READ)
    registers = {"rdi": DATA, "rsp": KERNEL_STACK - 0x100}
    outcome = rig.run(code, 0, registers=registers, cr4=CR4.SMAP if smap else 0, forced=True)
    # Without SMAP the code of the rig, on a user page, goes on; with it only this access fails.
    assert (outcome.exception is None) == allowed
    if not allowed:
        assert outcome.exception == (14, PRESENT, DATA)


@pytest.mark.parametrize(
    ("code", "registers", "vector"),
    [
        ("f30f6f07", {"rdi": 1 << 60}, 13),
        ("f30f6f4500", {"rbp": 1 << 60}, 12),
        ("0f2807", {"rdi": DATA + 8}, 13),
        ("0f5807", {"rdi": DATA + 8}, 13),
        ("480fc70f", {"rdi": DATA + 8}, 13),
        ("480fae27", {"rdi": DATA + 8, "rax": 7}, 13),
        ("c5fc2807", {"rdi": DATA + 16}, 13),
        ("0f01d0", {"rcx": 2}, 13),
        ("66480f38820f", {"rcx": 4, "rdi": DATA}, 13),
    ],
)
def test_general_protection(rig: Rig, code: str, registers: dict[str, int], vector: int) -> None:
    outcome = rig.run(bytes.fromhex(code), 0, registers=registers, forced=True)
    assert outcome.exception == (vector, 0, 0)
    assert outcome.advanced == 0


@pytest.mark.parametrize(
    ("code", "cr0", "cr4", "vector"),
    [
        ("0f58c1", CR0.TS, 0, 7),
        ("0f58c1", CR0.EM, 0, 6),
        ("0f58c1", 0, -CR4.OSFXSR, 6),
        ("d9e8", CR0.TS, 0, 7),
        ("d9e8", CR0.EM, 0, 7),
        ("0ffcc1", CR0.EM, 0, 6),
        ("9b", CR0.TS | CR0.MP, 0, 7),
        ("0fae1f", CR0.TS, 0, 7),
        ("480fae27", CR0.TS, 0, 7),
        ("480fae27", 0, -CR4.OSXSAVE, 6),
        ("c5fe6f07", 0, -CR4.OSXSAVE, 6),
        ("c5fe6f07", CR0.TS, 0, 7),
        ("0f01d0", 0, -CR4.OSXSAVE, 6),
        ("f00f01ca", 0, 0, 6),
    ],
)
def test_instructions_that_are_switched_off(
    rig: Rig, code: str, cr0: int, cr4: int, vector: int
) -> None:
    outcome = rig.run(
        bytes.fromhex(code), 0, registers={"rdi": DATA, "rax": 7}, cr0=cr0, cr4=cr4, forced=True
    )
    assert outcome.exception == (vector, 0, 0)


def test_fpu_exceptions_are_switched_off_for_general_instructions(rig: Rig) -> None:
    """A BMI instruction does not care about CR0.TS."""
    outcome = rig.run(bytes.fromhex("c4e2e0f2c1"), 0, cr0=CR0.TS, forced=True)
    assert outcome.exception is None


@pytest.mark.parametrize("code", ["0f01ca", "0f01cb"])
def test_ring_3_has_no_clac_and_stac(rig: Rig, code: str) -> None:
    outcome = rig.run(bytes.fromhex(code), 3, forced=True)
    assert outcome.exception == (6, 0, 0)


@pytest.mark.parametrize("code", ["9b", "d9e8", "0ffcc1"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_pending_x87_exception_comes_first(rig: Rig, code: str, forced: bool) -> None:
    if code != "9b" and not forced:
        require_host(X87_PENDING)
    image = bytearray(rig.pristine)
    # Divide by zero, flagged and not masked.
    image[0:4] = bytes.fromhex("7b038480")
    image[512] = 3
    outcome = rig.run(bytes.fromhex(code), 3, xsave=bytes(image), forced=forced)
    assert outcome.exception == (16, 0, 0)


def test_ldmxcsr_with_reserved_bits(rig: Rig) -> None:
    outcome = rig.run(
        bytes.fromhex("0fae17"), 0, registers={"rdi": DATA}, data=b"\0\0\xff\xff", forced=True
    )
    assert outcome.exception == (13, 0, 0)


@pytest.mark.parametrize("data", [bytes(512) + b"\xff" * 64, bytes(520) + b"\1" + bytes(55)])
def test_xrstor_of_a_bad_header(rig: Rig, data: bytes) -> None:
    outcome = rig.run(
        bytes.fromhex("480fae2f"), 0, registers={"rdi": DATA, "rax": 7}, data=data, forced=True
    )
    assert outcome.exception == (13, 0, 0)


def test_xrstor_brings_back_what_xsave_stored(rig: Rig) -> None:
    stored = rig.run(
        bytes.fromhex("480fae27"), 0, registers={"rdi": DATA, "rax": 7},
        data=bytes(0x1000), xsave=vectors(rig), forced=True,
    )  # fmt: skip
    loaded = rig.run(
        bytes.fromhex("480fae2f"), 0, registers={"rdi": DATA, "rax": 7},
        data=stored.memory, forced=True,
    )  # fmt: skip
    assert loaded.exception is None
    assert loaded.xsave[160:416] == VECTOR * 16
    assert loaded.xsave == stored.xsave


BYTES = bytes(range(8, 40))


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("code", "sizes"),
    [
        ("f30f6f07", [8, 8]),
        ("f20f1007", [8]),
        ("f30f1007", [4]),
        ("0f5a07", [8]),
        ("c5fe6f07", [8, 8, 8, 8]),
        ("c5fb1007", [8]),
        ("f3480fb807", [8]),
    ],
)
def test_reading_a_device(rig: Rig, code: str, sizes: list[int], ring: int, forced: bool) -> None:
    if ring and not forced:
        require_host(HANDED_OVER)
    outcome = rig.run(bytes.fromhex(code), ring, registers={"rdi": DEVICE + 8}, forced=forced)
    assert outcome.exception is None
    assert [(kind, len(data)) for kind, _, data in outcome.device] == [
        ("read", size) for size in sizes
    ]
    assert b"".join(data for *_, data in outcome.device) == BYTES[: sum(sizes)]
    if code in ("f30f6f07", "c5fe6f07"):
        assert outcome.xsave[160:176] == BYTES[:16]


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("code", "sizes"),
    [
        ("f30f7f07", [8, 8]),
        ("660fd607", [8]),
        ("660f7e07", [4]),
        ("0f1307", [8]),
        ("0fae1f", [4]),
        ("c5fe7f07", [8, 8, 8, 8]),
        ("c5f97f07", [8, 8]),
    ],
)
def test_writing_to_a_device(
    rig: Rig, code: str, sizes: list[int], ring: int, forced: bool
) -> None:
    if ring and not forced:
        require_host(HANDED_OVER)
    address = DEVICE + (0x20 if code == "c5f97f07" else 8)
    image = vectors(rig)
    outcome = rig.run(
        bytes.fromhex(code), ring, registers={"rdi": address}, xsave=image, forced=forced
    )
    assert outcome.exception is None
    assert [(kind, len(data)) for kind, _, data in outcome.device] == [
        ("write", size) for size in sizes
    ]
    written = b"".join(data for *_, data in outcome.device)
    assert written == (b"\x80\x1f\0\0" if code == "0fae1f" else (VECTOR * 2)[: sum(sizes)])
    offsets = [offset for _, offset, _ in outcome.device]
    assert offsets == [address - DEVICE + sum(sizes[:at]) for at in range(len(sizes))]


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(("inside", "sizes"), [(8, [8]), (3, [8, 4, 1]), (15, [1])])
def test_an_operand_half_in_memory_and_half_in_a_device(
    rig: Rig, inside: int, sizes: list[int], ring: int, forced: bool
) -> None:
    """`inside` bytes of 16 are RAM; the rest comes eight at a time, in pieces that devices take."""
    if ring and not forced:
        require_host(HANDED_OVER)
    registers = {"rdi": BORDER - inside}
    data = bytes(0x1000 - inside) + bytes(range(0x80, 0x80 + inside))
    read = rig.run(bytes.fromhex(READ), ring, registers=registers, data=data, forced=forced)
    assert read.xsave[160:176] == data[-inside:] + bytes(range(16 - inside))
    assert [(kind, len(each)) for kind, _, each in read.device] == [
        ("read", size) for size in sizes
    ]
    written = rig.run(
        bytes.fromhex(STORE), ring, registers=registers, xsave=vectors(rig), forced=forced
    )
    assert written.memory[0x1000 - inside : 0x1000] == VECTOR[:inside]
    assert b"".join(each for *_, each in written.device) == VECTOR[inside:]
    assert [offset for _, offset, _ in written.device] == [
        sum(sizes[:at]) for at in range(len(sizes))
    ]


def test_a_fault_in_the_second_page_writes_nothing(rig: Rig) -> None:
    outcome = rig.run(
        bytes.fromhex(STORE), 0, registers={"rdi": MISSING - 8}, xsave=vectors(rig), forced=True
    )
    assert outcome.exception == (14, WRITE, MISSING)
    assert VECTOR[:8] not in outcome.memory


def test_what_an_x87_environment_reserves_is_ones(rig: Rig) -> None:
    """As processors store it; the manual calls the upper halves reserved (SDM 1 figure 8-9)."""
    outcome = rig.run(bytes.fromhex("d937"), 0, registers={"rdi": DATA}, forced=True)
    assert outcome.memory[:12].hex(" ", 4) == "7f03ffff 0000ffff ffffffff"


def test_clzero(rig: Rig) -> None:
    outcome = rig.run(bytes.fromhex("0f01fc"), 0, registers={"rax": DATA + 0x79}, forced=True)
    assert outcome.memory[:0xC0] == b"\xa5" * 0x40 + bytes(0x40) + b"\xa5" * 0x40


# Operands in memory of every size.
EDGES = [
    ("0f2c07", 8), ("0f2d07", 8), ("0f5a07", 8), ("f30fe607", 8), ("0f6007", 4), ("0f6107", 4),
    ("0f6207", 4), ("660f3a0a0700", 4), ("660f3a0b0700", 8), ("f30f5807", 4), ("f20f5807", 8),
    ("f20f1207", 8), ("0f2e07", 4), ("660f2f07", 8), ("660f3a210700", 4), ("660f382107", 4),
    ("660f382407", 4), ("660f383207", 2), ("660fc40701", 2), ("660f3a200703", 1), ("f30f7e07", 8),
    ("660f6e07", 4), ("d907", 4), ("dd07", 8), ("db2f", 10), ("df37", 10), ("da07", 4), ("de07", 2),
    ("f20f2a07", 4), ("f3480f2a07", 8), ("660f3a630700", 16), ("f20ff007", 16), ("c5fe6f07", 32),
    ("c5fb1007", 8), ("f3480fb807", 8), ("66f30fb807", 2), ("0fae1f", 4), ("d93f", 2),
]  # fmt: skip


READ_TOO_FAR = {"f30fe607": CVTDQ2PD, **dict.fromkeys(("0f6007", "0f6107", "0f6207"), PUNPCKL)}


@pytest.mark.parametrize(("code", "size"), EDGES)
@pytest.mark.parametrize("forced", [False, True])
def test_an_operand_reaches_just_as_far_as_it_is_long(
    rig: Rig, code: str, size: int, forced: bool
) -> None:
    """At the end of a page, with no page advanced it; the processor says so too."""
    if code in READ_TOO_FAR and not forced:
        require_host(READ_TOO_FAR[code])
    raw = bytes.fromhex(code)
    fits = rig.run(raw, 3, registers={"rdi": MISSING - size}, forced=forced)
    assert fits.exception is None
    too_long = rig.run(raw, 3, registers={"rdi": MISSING - size + 1}, forced=forced)
    assert too_long.exception is not None
    assert too_long.exception[0] == 14


@pytest.mark.parametrize("before", range(1, 8))
@pytest.mark.parametrize("code", ["f3480fb8c3", "66450fefdb", "0fae5f40", "c5f96fd1"])
def test_an_instruction_across_two_pages(rig: Rig, code: str, before: int) -> None:
    """KVM gives the bytes of the first page; the rest is fetched."""
    raw = bytes.fromhex(code)
    registers = {"rbx": 0xFF00FF, "rdi": DATA}
    native, ours = (
        rig.run(raw, ring, registers=registers, xsave=vectors(rig), at=CODE + 0x1000 - before)
        for ring in (3, 0)
    )
    assert native.exception is None
    assert ours == native


@pytest.mark.parametrize("before", range(1, 5))
def test_the_second_page_is_missing(rig: Rig, before: int) -> None:
    """#PF of the fetch, at the first byte of that page."""
    raw = bytes.fromhex("f3480fb8c3")
    at = CODE + 0x2000 - before
    native, ours = (rig.run(raw, ring, registers={"rbx": 1}, at=at) for ring in (3, 0))
    assert native.exception is not None
    assert ours.exception == (14, native.exception[1] & ~USER, CODE + 0x2000)
    assert native.exception[2] == CODE + 0x2000
    assert ours.advanced == native.advanced == 0


@pytest.mark.parametrize(
    "code",
    [
        *("660f12c1", "660f16c1"),  # movlpd, movhpd
        *("0f38f0c0", "0f38f1c0", "660f38f0c0", "660f38f1c0"),  # movbe
    ],
)
def test_a_register_for_what_takes_memory_alone(rig: Rig, code: str) -> None:
    raw = bytes.fromhex(code)
    outcome = rig.run(raw, 0, forced=True)
    assert outcome.exception == (6, 0, 0)
    assert outcome.advanced == 0
    in_memory = bytes([*raw[:-1], 0x06])  # [rsi]
    assert rig.run(in_memory, 0, registers={"rsi": DATA}, forced=True).exception is None


@pytest.mark.parametrize(
    "code",
    [
        *("0f5006", "660f5006"),  # movmskps, movmskpd
        *("0f711601", "0f722601", "0f733601", "660f711601", "660f722601", "660f733601"),  # shifts
        *("f20fd606", "f30fd606"),  # movdq2q, movq2dq
    ],
)
def test_memory_for_what_takes_registers_alone(rig: Rig, code: str) -> None:
    raw = bytes.fromhex(code)
    outcome = rig.run(raw, 0, registers={"rsi": DATA}, forced=True)
    assert outcome.exception == (6, 0, 0)
    at = raw.index(b"\x0f") + 2
    of_registers = raw[:at] + bytes([raw[at] | 0xC0]) + raw[at + 1 :]
    assert rig.run(of_registers, 0, forced=True).exception is None
