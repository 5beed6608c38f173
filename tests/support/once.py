"""Whether the local APICs that KVM has bring an interrupt once, and with IF set only.

QEMU's emulation of SVM, which `make test-amd` uses, now and then brings one a second time, with IF
clear, at the first instruction of its handler.  Linux oopses or hangs on such a host, in QEMU as in
pykvm, and less often where it keeps to MMIO.
"""

from __future__ import annotations

from pykvm import Machine, Mode
from support.host import ask, host_probe
from support.listing import assemble

__all__ = ["NATIVE", "ONCE", "cpu_for", "may_bring_one_twice"]

NATIVE = "ring-0-runs-on-the-processor"

ONCE = "in-kernel-lapic-interrupts-once"
TIMER, ITSELF = 0x41, 0x42
ATTEMPTS = 5

# 20,000 times two interrupts, which have to wait for STI.
ROUNDS = """
    FA                   cli
    66 B9 1B 00 00 00    mov ecx, 0x1b            ; IA32_APIC_BASE: x2APIC mode
    0F 32                rdmsr
    66 0D 00 0C 00 00    or eax, 0xc00
    0F 30                wrmsr
    66 31 D2             xor edx, edx
    66 B9 0F 08 00 00    mov ecx, 0x80f           ; spurious interrupts: enable
    66 B8 FF 01 00 00    mov eax, 0x1ff
    0F 30                wrmsr
    66 B9 32 08 00 00    mov ecx, 0x832           ; LVT timer: TSC deadline, vector 0x41
    66 B8 41 00 04 00    mov eax, 0x40041
    0F 30                wrmsr
    66 BB 20 4E 00 00    mov ebx, 20000
    0F 31                rdtsc                    ; again:
    66 89 DE             mov esi, ebx
    66 83 E6 1F          and esi, 0x1f
    66 C1 E6 0A          shl esi, 10
    66 01 F0             add eax, esi
    66 83 D2 00          adc edx, 0
    66 B9 E0 06 00 00    mov ecx, 0x6e0           ; IA32_TSC_DEADLINE: soon
    0F 30                wrmsr
    B9 14 00             mov cx, 20
    66 55                push ebp
    66 5D                pop ebp
    E2 FA                loop $-4
    66 31 D2             xor edx, edx
    66 B9 30 08 00 00    mov ecx, 0x830           ; interrupt command: self, vector 0x42
    66 B8 42 00 04 00    mov eax, 0x40042
    0F 30                wrmsr
    B9 0A 00             mov cx, 10
    E2 FE                loop $
    FB                   sti
    90                   nop
    90                   nop
    FA                   cli
    66 4B                dec ebx
    75 BD                jnz again
    B0 00                mov al, 0
    E6 F4                out 0xf4, al
"""
HANDLER = """
    55                   push bp
    89 E5                mov bp, sp
    F7 46 06 00 02       test word [bp+6], 0x200  ; IF of what was interrupted
    75 04                jnz $+6
    B0 01                mov al, 1
    E6 F4                out 0xf4, al
    66 60                pushad
    66 B9 0B 08 00 00    mov ecx, 0x80b           ; EOI
    66 31 C0             xor eax, eax
    66 31 D2             xor edx, edx
    0F 30                wrmsr
    66 61                popad
    5D                   pop bp
    CF                   iret
"""
HANDLER_AT = 0x6000


@host_probe(NATIVE)
def ring_0_runs_on_the_processor() -> str | None:
    """Whether the first of what KVM's emulator refuses is executed."""
    code = """
        F3 0F B8 C0      popcnt ax, ax
        B0 00            mov al, 0
        E6 F4            out 0xf4, al
    """
    with Machine(assemble(code), mode=Mode.REAL, emulate="off", memory="1M") as machine:
        result = machine.run(timeout=20)
    return None if result.exit_code == 0 else "KVM emulates ring 0, which takes an hour a boot"


@host_probe(ONCE)
def interrupts_come_once() -> str | None:
    """It is rare, so a host has several chances to do it."""
    if any(one_comes_twice() for _ in range(ATTEMPTS)):
        return "brings an interrupt twice, with IF clear"
    return None


def one_comes_twice() -> bool:
    """Whether one does among 40,000, which a processor takes in a fifth of a second."""
    with Machine(
        assemble(ROUNDS), mode=Mode.REAL, irqchip="kernel", cpu="host", memory="1M"
    ) as machine:
        machine.memory.write(HANDLER_AT, assemble(HANDLER))
        for vector in (TIMER, ITSELF):
            machine.memory.write_u32(4 * vector, HANDLER_AT)
        return machine.run(timeout=60).exit_code == 1


def cpu_for(irqchip: str, cpu: str = "baseline") -> str:
    """The CPU for a Linux: one that it takes for bare metal, where that saves it from this.

    It keeps to MMIO there, after which interrupts come twice far less often.
    """
    rarer = irqchip != "user" and may_bring_one_twice()
    return f"{cpu},-hypervisor" if rarer else cpu


def may_bring_one_twice() -> bool:
    """Whether a guest in ring 0 can meet an interrupt twice here."""
    return ask(NATIVE) is None and ask(ONCE) is not None
