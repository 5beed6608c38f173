"""Machines whose guests execute what KVM refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emulate.refusing import REFUSES, TWO
from pykvm import GuestExit, Machine, Mode, Outcome
from pykvm._core import ffi, lib
from pykvm.emulate import PATIENCE, native
from pykvm.exits import InternalError
from support.guest import MakeGuest
from support.listing import assemble

PADDQ = "66 0f d4"


@pytest.fixture
def long(guest: MakeGuest) -> MakeGuest:
    """A machine that runs a listing in long mode."""

    def make(listing: str, **options: object) -> Machine:
        return guest(listing, mode=Mode.LONG, **options)

    return make


@pytest.mark.needs_host(REFUSES)
def test_a_guest_goes_on_and_its_instructions_are_counted(long: MakeGuest) -> None:
    machine = long(TWO)
    result = machine.run(timeout=10)
    assert result.exit_code == 16
    assert machine.memory.read_u64(0x10000) == 2 * 0xFF00FF
    assert result.emulated == {"popcnt": 1, "movd": 1, "paddq": 1, "movq": 1}
    assert 0 < result.emulated_seconds <= result.outside_seconds
    assert result.exits["InternalError"] == 4


@pytest.mark.needs_host(REFUSES)
def test_each_run_counts_its_own(guest: MakeGuest) -> None:
    machine = guest(
        """
        F3 0F B8 C0      popcnt ax, ax
        E6 F4            out 0xf4, al
        EB F8            jmp $-6
        """
    )
    assert machine.run(timeout=10).emulated == {"popcnt": 1}
    assert machine.run(timeout=10).emulated == {"popcnt": 1}


@pytest.mark.needs_host(REFUSES)
def test_emulate_off_leaves_refused_instructions_a_crash(long: MakeGuest) -> None:
    result = long(TWO, emulate="off").run(timeout=10)
    assert result.outcome is Outcome.CRASHED
    assert result.error is not None
    assert result.error.kind == "refused instruction"
    assert "f3 48 0f b8 d8" in str(result.error)
    assert result.emulated == {}


class NoNewCode:
    """The core on a host that lets no program make code for itself."""

    def pykvm_native_new(self) -> object:
        return ffi.NULL

    def __getattr__(self, name: str) -> object:
        return getattr(lib, name)


@pytest.mark.needs_host(REFUSES)
def test_where_new_code_is_forbidden_the_table_still_works(
    long: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "lib", NoNewCode())
    result = long(TWO).run(timeout=10)
    assert result.emulated == {"popcnt": 1}
    assert result.error is not None
    assert result.error.kind == "refused instruction"
    assert "movd" in result.error.cause
    assert "lets no program make code" in result.error.cause


@pytest.mark.needs_host(REFUSES)
def test_an_unknown_instruction_is_named(long: MakeGuest) -> None:
    result = long("0F 01 C5    pconfig").run(timeout=10)
    assert result.error is not None
    assert result.error.kind == "refused instruction"
    assert "0f 01 c5" in result.error.cause


@pytest.mark.kvm
def test_a_wild_jump_stays_one(long: MakeGuest) -> None:
    result = long("""
        48 B8 00 00 00 D0 00 00 00 00    mov rax, 0xd0000000
        FF E0                            jmp rax
    """).run(timeout=10)
    assert result.error is not None
    assert result.error.kind == "wild jump"


@pytest.mark.kvm
def test_what_cpuid_does_not_show_is_undefined(guest: MakeGuest) -> None:
    """RDPRU, which no model shows: #UD, and not the end of the run (APM 3, RDPRU)."""
    machine = guest("""
        0F 01 FD         rdpru
        B0 01            mov al, 1
        E6 F4            out 0xf4, al
    """)
    machine.memory.write(0x600, assemble("B0 06 E6 F4    mov al, 6; out 0xf4, al"))
    machine.memory.write_u32(6 * 4, 0x600)
    assert machine.run(timeout=10).exit_code == 6


@pytest.mark.kvm
def test_hints_do_nothing(long: MakeGuest) -> None:
    """RDSSP and ENDBR64 without CET, as kernels that are built for it execute them."""
    result = long("""
        BE 07 00 00 00   mov esi, 7
        F3 48 0F 1E CE   rdsspq rsi
        F3 0F 1E FA      endbr64
        0F 1C 00         cldemote [rax]
        89 F0            mov eax, esi
        E6 F4            out 0xf4, al
    """).run(timeout=10)
    assert result.exit_code == 7, result


class Scripted:
    """A device that says what its reads are and what its writes do."""

    name = "board"

    def __init__(self, then: BaseException | None = None) -> None:
        self.then = then
        self.written: list[int] = []

    def read(self, offset: int, size: int) -> int:
        if self.then is not None:
            raise self.then
        return 0x1122334455667788

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append(value)
        if self.then is not None:
            raise self.then


MOVQ_TO_DEVICE = """
    BF 00 00 00 D0               mov edi, 0xd0000000
    66 48 0F 6E C7               movq xmm0, rdi
    66 0F D6 07                  movq [rdi], xmm0
    F4                           hlt
"""


@pytest.mark.kvm
def test_vector_move_to_a_device_in_ring_0(long: MakeGuest) -> None:
    machine = long(MOVQ_TO_DEVICE)
    board = Scripted()
    machine.add(board, mmio=0xD000_0000, length=16)
    assert machine.run(timeout=10).outcome is Outcome.HALTED
    assert board.written == [0xD000_0000]


@pytest.mark.kvm
def test_a_device_ends_the_run_from_inside_an_instruction(long: MakeGuest) -> None:
    """The instruction is done then, as it is with those that KVM does."""
    machine = long(MOVQ_TO_DEVICE)
    machine.add(Scripted(GuestExit(5)), mmio=0xD000_0000, length=16)
    assert machine.run(timeout=10).exit_code == 5
    assert machine.run(timeout=10).outcome is Outcome.HALTED


@pytest.mark.kvm
def test_what_a_device_raises_passes(long: MakeGuest) -> None:
    machine = long(MOVQ_TO_DEVICE)
    machine.add(Scripted(ZeroDivisionError("mine")), mmio=0xD000_0000, length=16)
    with pytest.raises(ZeroDivisionError, match="mine"):
        machine.run(timeout=10)


@pytest.mark.kvm
def test_no_device_at_the_address(long: MakeGuest) -> None:
    machine = long(MOVQ_TO_DEVICE)
    result = machine.run(timeout=10)
    assert result.error is not None
    assert result.error.kind == "wild access"
    assert "0xd0000000" in result.error.cause
    assert result.error.registers["rdi"] == 0xD000_0000
    assert long(MOVQ_TO_DEVICE, unclaimed="open-bus").run(timeout=10).outcome is Outcome.HALTED


@pytest.mark.kvm
def test_a_write_to_rom_goes_to_the_bus(long: MakeGuest) -> None:
    class Flash:
        name = "flash"

        def __init__(self) -> None:
            self.written: list[int] = []

        def write(self, offset: int, size: int, value: int) -> None:
            self.written.append(value)

    machine = long(MOVQ_TO_DEVICE)
    flash = Flash()
    machine.memory.add_rom(0xD000_0000, b"rom" * 100)
    machine.add(flash, mmio=0xD000_0000, length=16)
    assert machine.run(timeout=10).outcome is Outcome.HALTED
    assert flash.written == [0xD000_0000]
    assert machine.memory.read(0xD000_0000, 3) == b"rom"


@pytest.mark.needs_host(REFUSES)
def test_memory_that_comes_and_goes(long: MakeGuest) -> None:
    """What is done in pykvm sees memory as it is."""
    machine = long("""
        66 0F 6F 07                  movdqa xmm0, [rdi]
        66 0F D4 C0                  paddq xmm0, xmm0
        66 0F 7F 07                  movdqa [rdi], xmm0
        E6 F4                        out 0xf4, al
        EB F0                        jmp $-14
    """)
    machine.vcpus[0].regs.rdi = 0x80_0000
    extra = machine.memory.add_ram(0x80_0000, 0x1000)
    machine.memory.write_u64(0x80_0000, 21)
    assert machine.run(timeout=10).exit_code == 0
    assert machine.memory.read_u64(0x80_0000) == 42
    machine.memory.remove(extra)
    assert machine.run(timeout=10).outcome is Outcome.CRASHED


@pytest.mark.needs_host(REFUSES)
def test_no_progress_is_an_error(guest: MakeGuest) -> None:
    machine = guest("""
        31 C0                        xor ax, ax
        8E D8                        mov ds, ax
        C7 06 18 00 00 06            mov word [6 * 4], 0x600
        C7 06 1A 00 00 00            mov word [6 * 4 + 2], 0
        66 0F 58 C1                  addpd xmm0, xmm1    ; #UD: CR4.OSFXSR is clear
    """)
    machine.memory.write(0x600, assemble("CF    iret"))
    result = machine.run(timeout=30)
    assert result.error is not None
    assert result.error.kind == "no progress"
    assert "addpd" in result.error.cause
    assert result.exits["InternalError"] == PATIENCE + 1


@pytest.mark.needs_host(REFUSES)
def test_a_loop_of_the_same_instruction_is_progress(guest: MakeGuest) -> None:
    machine = guest("""
        9B                           fwait
        EB FD                        jmp $-1
    """)
    result = machine.run(timeout=0.5)
    assert result.outcome is Outcome.TIMEOUT
    assert result.emulated["fwait"] > 100


ADD_UP = """
    BF 00 00 01 00               mov edi, 0x10000
    B9 64 00 00 00               mov ecx, 100
    51                           push rcx
    48 8B 07                     mov rax, [rdi]
    48 8B 57 08                  mov rdx, [rdi + 8]
    48 89 C3                     mov rbx, rax
    48 89 D1                     mov rcx, rdx
    48 83 C3 01                  add rbx, 1
    F0 48 0F C7 0F               lock cmpxchg16b [rdi]
    75 E8                        jnz again
    66 48 0F 6E C3               movq xmm0, rbx
    59                           pop rcx
    FF C9                        dec ecx
    75 DD                        jnz another
    F4                           hlt
"""


@pytest.mark.needs_host(REFUSES)
def test_two_vcpus_at_once(guest: MakeGuest) -> None:
    """Both add to one number with CMPXCHG16B, 100 times each, and none is lost."""
    machine = guest(ADD_UP, mode=Mode.LONG, vcpus=2, cpu="baseline,+cx16")
    first, second = machine.vcpus
    state = first.state
    state.rsp = 0x9_0000
    second.state = state
    second.parked = False
    result = machine.run(timeout=30)
    assert result.outcome is Outcome.HALTED
    assert machine.memory.read_u64(0x10000) == 200
    assert result.emulated["cmpxchg16b"] >= 200
    assert result.emulated["movd"] == 200


@pytest.mark.needs_host(REFUSES)
def test_a_closed_machine_gives_its_memory_back(long: MakeGuest) -> None:
    machine = long(TWO)
    region = machine.memory.regions[0]
    machine.run(timeout=10)
    machine.close()
    # No view of it is left: it is unmapped.
    assert f"{region.host_address:x}-" not in Path("/proc/self/maps").read_text()


@pytest.mark.kvm
def test_guest_refused_elf(guests: Path) -> None:
    with Machine(guests / "refused.elf", cpu="baseline,+cx16") as machine:
        result = machine.run(timeout=30)
        assert result.exit_code == 0, result
        assert machine.serial.text.splitlines() == [
            "popcnt: 32 bits",
            "cmpxchg16b: 3, 4",
            "mulps, haddps: 70",
            "fsqrt: 42",
            "lsl: 0xffffffff",
            "int3: 2 times",
        ]


def pykvm(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "two.bin"
    path.write_bytes(assemble(TWO))
    return subprocess.run(
        [sys.executable, "-m", "pykvm", str(path), "--mode", "long", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.mark.needs_host(REFUSES)
def test_stats_name_the_instructions(tmp_path: Path) -> None:
    finished = pykvm(tmp_path, "--stats")
    assert finished.returncode == 16
    lines = [line.split() for line in finished.stderr.splitlines()]
    assert ["popcnt", "1"] in lines
    assert ["paddq", "1"] in lines
    assert any(line[:2] == ["emulated", "4"] for line in lines)


@pytest.mark.needs_host(REFUSES)
def test_the_trace_shows_how_it_went_on(tmp_path: Path) -> None:
    finished = pykvm(tmp_path, "--trace")
    lines = finished.stderr.splitlines()
    (at,) = [number for number, line in enumerate(lines) if "popcnt" in line]
    assert "InternalError" in lines[at - 1]
    assert "popcnt done" in lines[at]


@pytest.mark.needs_host(REFUSES)
def test_the_trace_in_json(tmp_path: Path) -> None:
    finished = pykvm(tmp_path, "--trace=json")
    records = [json.loads(line) for line in finished.stderr.splitlines() if line[:1] == "{"]
    done = [record for record in records if record.get("completed")]
    assert [record["completed"] for record in done] == ["popcnt", "movd", "paddq", "movq"]
    assert records[-1]["emulated"] == {"popcnt": 1, "movd": 1, "paddq": 1, "movq": 1}


@pytest.mark.needs_host(REFUSES)
def test_stepping_goes_over_completed_instructions(tmp_path: Path) -> None:
    path = tmp_path / "two.bin"
    path.write_bytes(assemble(TWO))
    finished = subprocess.run(
        [sys.executable, "-m", "pykvm", "step", str(path), "--mode", "long"],
        input="s\ns\ns\ns\nq\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    shown = finished.stdout
    assert "popcnt" in shown
    # One instruction a step: after POPCNT comes MOVQ.
    assert "0x7c14  movq xmm0, rax" in shown or "0x7c14  bytes 66 48 0f 6e c0" in shown


@pytest.mark.kvm
def test_an_internal_error_of_another_kind_is_not_ours(guest: MakeGuest) -> None:
    machine = guest("F4    hlt")
    assert not machine._workarounds.emulator().take(machine.vcpus[0], InternalError(3))
