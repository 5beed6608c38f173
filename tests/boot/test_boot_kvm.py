"""A placed image starts: on a real vCPU, with what `place` promised it.

The guests tell what they find by its place in a few registers when they halt.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from boot.elfs import ET_DYN, PT_DYNAMIC, Part, R, W, dynamic, elf, sectioned
from boot.kernels import note
from boot.multiboots import header1, header2, kernel, tag

from pykvm import Machine, Outcome, boot
from pykvm.boot.image import Setup
from pykvm.kvm import ExitReason, System
from pykvm.memory import GuestMemory
from pykvm.x86.state import CpuState, Mode, SegmentRegister, TableRegister
from support.boot import load

pytestmark = pytest.mark.kvm


def enter(vcpu: Any, state: CpuState) -> None:
    sregs = vcpu.get_sregs()
    for name in state.__slots__:
        value = getattr(state, name)
        if isinstance(value, (SegmentRegister, TableRegister)):
            for field in value.__slots__:
                setattr(getattr(sregs, name), field, getattr(value, field))
        elif hasattr(sregs, name):
            setattr(sregs, name, value)
    vcpu.set_sregs(sregs)
    names = [name for name in state.__slots__ if name.startswith("r")]
    vcpu.set_regs({name: getattr(state, name) for name in names})


def run(image: boot.Image, *args: str, size: int = 2 << 20) -> tuple[Any, boot.Entry, bytes]:
    """Run `image` to its HLT; returns its registers then, how it was entered, and its memory."""
    with (
        GuestMemory(overcommit=True) as memory,
        System() as system,
        system.create_vm() as vm,
        vm.create_vcpu(0) as vcpu,
    ):
        memory.add_ram(0, size)
        entry = boot.place(image, memory, Setup(args=tuple(args)))
        memory.attach(vm)
        vcpu.set_cpuid2(system.supported_cpuid())
        enter(vcpu, entry.state)
        vcpu.run()
        (reason,) = struct.unpack_from("<I", vcpu.run_page, 8)
        assert reason == ExitReason.KVM_EXIT_HLT
        return vcpu.get_regs(), entry, memory.read(0, size)


def test_long_mode() -> None:
    code = bytes.fromhex(
        "89 f8"  # mov eax, edi
        "48 8b 5e 08"  # mov rbx, [rsi+8]
        "8a 0b"  # mov cl, [rbx]
        "5a"  # pop rdx
        "0f 00 cf"  # str edi
        "f4"  # hlt
    )
    regs, entry, _ = run(load(elf(Part(code))), "x")
    assert (regs.rax, regs.rcx & 0xFF, regs.rdx) == (2, ord("x"), 0)
    assert regs.rdi == entry.state.tr.selector
    assert regs.rip == 0x10_0000 + len(code)


def test_long_mode_reloads_its_segments_from_the_gdt() -> None:
    code = bytes.fromhex(
        "8c d8"  # mov eax, ds
        "8e d8"  # mov ds, eax
        "8e d0"  # mov ss, eax
        "8c cb"  # mov ebx, cs
        "53"  # push rbx
        "68 10 00 10 00"  # push 0x100010
        "48 cb"  # retfq
        "b1 07"  # 0x100010: mov cl, 7
        "f4"  # hlt
    )
    regs, entry, _ = run(load(elf(Part(code))))
    assert regs.rcx & 0xFF == 7
    assert regs.rbx == entry.state.cs.selector
    assert regs.rsp == entry.state.rsp


def test_protected_mode() -> None:
    code = bytes.fromhex(
        "5a"  # pop edx
        "58"  # pop eax
        "5b"  # pop ebx
        "8b 5b 04"  # mov ebx, [ebx+4]
        "8a 0b"  # mov cl, [ebx]
        "f4"  # hlt
    )
    regs, _, _ = run(load(elf(Part(code), bits=32)), "x")
    assert (regs.rdx, regs.rax, regs.rcx & 0xFF) == (0, 2, ord("x"))


@pytest.mark.parametrize("address", [0, 0x7C00, 0xF_0000])
def test_real_mode(address: int) -> None:
    code = bytes.fromhex(
        "e8 01 00"  # call over
        "f4"  # hlt
        "2e a1"  # over: mov ax, cs:[data]
    )
    data = (address & 0xFFFF) + len(code) + 3
    code += struct.pack("<H", data) + b"\xc3" + b"\x34\x12"  # ret; data
    regs, entry, memory = run(load(code, address=address, mode=Mode.REAL))
    assert regs.rax == 0x1234
    pushed = entry.state.ss.base + ((entry.state.rsp - 2) & 0xFFFF)
    assert memory[pushed : pushed + 2] == struct.pack("<H", (address & 0xFFFF) + 3)


def test_a_flat_image_in_long_mode() -> None:
    regs, _, _ = run(load(b"\x89\xf8\xf4", mode=Mode.LONG))  # mov eax, edi; hlt
    assert regs.rax == 1


def test_a_pie_finds_its_pointers_relocated() -> None:
    code = bytes.fromhex("48 8b 05 f9 0f 00 00 8b 08 f4")  # mov rax, [rip+0xff9]; mov ecx, [rax]
    table = struct.pack("<QQq", 0x1000, 8, 0x1008 + 24)
    image = elf(
        Part(code, 0),
        Part(bytes(8) + table + b"\x78\x56\x34\x12", 0x1000, R | W),
        Part(dynamic((7, 0x1008), (8, 24), (9, 24)), type=PT_DYNAMIC),
        type=ET_DYN,
    )
    regs, _, _ = run(load(image))
    assert (regs.rax, regs.rcx) == (0x10_1020, 0x1234_5678)


def test_pvh_by_a_note_that_is_in_no_segment() -> None:
    code = bytes.fromhex(
        "8b 03"  # mov eax, [ebx]
        "f4"  # hlt
    )
    regs, _, _ = run(load(sectioned(note("Xen", 18, bytes.fromhex("00001000")).data, code=code)))
    assert regs.rax == 0x336EC578  # XEN_HVM_START_MAGIC_VALUE
    assert regs.rip == 0x10_0000 + len(code)


def test_firmware_that_turns_interrupts_off_before_it_jumps() -> None:
    image = bytearray(64 << 10)
    for offset, code in (
        (-16, "fa fc e9 0b f8"),  # cli; cld; jmp f800, as U-Boot does
        (-0x800, "b0 2a f4"),  # mov al, 0x2a; hlt
    ):
        instructions = bytes.fromhex(code)
        start = len(image) + offset
        image[start : start + len(instructions)] = instructions
    regs, _, _ = run(load(bytes(image)))
    assert (regs.rax & 0xFF, regs.rip) == (0x2A, 0xF803)


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        (header1(7, *[0] * 5, 0, 1024, 768, 32), "multiboot header asks for a video mode"),
        (
            header2(tag(5, 1024, 768, 32)),
            "multiboot2 header's framebuffer tag asks for a framebuff",
        ),
    ],
)
def test_a_kernel_that_wants_video_starts_without(header: bytes, wish: str) -> None:
    code = bytes.fromhex(
        "b0 2a"  # mov al, 0x2a
        "e6 f4"  # out 0xf4, al
    )
    with Machine(kernel(header, code=code)) as machine:
        result = machine.run(timeout=10)
    assert result.exit_code == 0x2A
    assert wish in result.notes[0]


def test_a_boot_sector_that_called_a_bios_is_told_so_while_it_runs_on() -> None:
    code = bytes.fromhex(
        "b8 41 0e"  # mov ax, 0x0e41
        "bb 00 80"  # mov bx, 0x8000: what follows at address 0 is add [bx+si], al
        "31 f6"  # xor si, si
        "cd 10"  # int 0x10
        "eb fe"  # jmp $
    )
    sector = code.ljust(510, b"\0") + b"\x55\xaa"

    def astray(machine: Machine) -> bool:
        return machine.vcpus[0].regs.rip < 0x7C00 and machine.stop()

    with Machine(sector) as machine:
        result = machine.run(timeout=30, until=lambda machine: astray(machine) and False)
    assert result.outcome is Outcome.STOPPED, result
    assert result.notes[-1].startswith(
        "INT 0x10 at 0x7c08 went through a vector of zeros to address 0; there is no BIOS"
    )
