"""Workarounds for this host on a Linux kernel's command line.

A host whose KVM runs ring 0 in its instruction emulator is some thousand times slower there than a
processor.  What a kernel does for safety alone, or to test itself, is then most of its start-up.
Each option names the quirk that makes it worthwhile; on a host without quirks a kernel gets none of
them.

Source: Documentation/admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

from pykvm.quirks import bit_counts, cpuid, found, software_interrupt, syscall
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = [
    "ALWAYS",
    "OPTIONS",
    "KernelOption",
    "add_workarounds",
    "options_for",
    "ring_0_is_emulated",
]


class KernelOption(NamedTuple):
    """`words` of a command line, and the quirk by which a host shows that it needs them.

    `vcpus` is the largest number of vCPUs that the option is for.
    """

    words: str
    quirk: str
    vcpus: int | None = None


# A kernel that panics ends its run instead of waiting for a reset button.
ALWAYS = ("panic=-1",)

# The only quirk that shows by itself that ring 0 runs in an emulator.
EMULATED = bit_counts.QUIRK.name

OPTIONS = (
    # Page-table isolation and the like: more ring 0 in each system call, and no other tenant.
    KernelOption("mitigations=off", syscall.QUIRK.name),
    # Page attributes and freed pieces, for seconds.
    KernelOption("rodata=off", EMULATED),
    # Every lock prefix would be patched away.
    KernelOption("noreplace-smp", EMULATED, vcpus=1),
    # The timer's interrupt may be late, and the watchdog would doubt the TSC for that.
    KernelOption("no_timer_check tsc=reliable", EMULATED),
    # What is slow is no lock-up.
    KernelOption("nowatchdog", EMULATED),
    # It does nothing but hash, for as long as the rest of the start-up takes.
    KernelOption("initcall_blacklist=blake2s_mod_init", EMULATED),
    # By its number (arch/x86/include/asm/cpufeatures.h: POPCNT is 4 * 32 + 23), which kernels older
    # than 5.19 want.  It is refused in ring 0, and cannot be hidden otherwise.
    KernelOption("clearcpuid=151", cpuid.QUIRK.name),
)


# What an option names, and what the workarounds of the same machine ask for: in one probe VM.
KERNEL_QUIRKS = (syscall.QUIRK, bit_counts.QUIRK, cpuid.QUIRK, software_interrupt.QUIRK)


def ring_0_is_emulated() -> bool:
    """Whether this host's KVM runs ring 0 in its instruction emulator.  Raises as `found` does."""
    return bool(found((bit_counts.QUIRK,)))


def options_for(quirks: Collection[str], vcpus: int) -> tuple[str, ...]:
    """The options for a host with these quirks, on a machine of so many vCPUs.

    >>> options_for({"syscall"}, 1)
    ('panic=-1', 'mitigations=off')
    >>> options_for((), 4)
    ('panic=-1',)
    """
    return (
        *ALWAYS,
        *(
            option.words
            for option in OPTIONS
            if option.quirk in quirks and (option.vcpus is None or vcpus <= option.vcpus)
        ),
    )


def add_workarounds(append: str, vcpus: int) -> tuple[str, str]:
    """Return `append` with the options for this host before it, and a sentence that says so.

    The caller's words come last and so override; an option whose name they use is left out.
    """
    named = {word.partition("=")[0] for word in append.split()}
    words: Sequence[str] = [
        word
        for option in options_for(found(KERNEL_QUIRKS), vcpus)
        for word in option.split()
        if word.partition("=")[0] not in named
    ]
    said = " ".join(words)
    return " ".join(filter(None, [said, append])), (
        f"the kernel's command line begins with {said}, workarounds for this host "
        f"({option('append_only', True)} leaves them out)"
        if words
        else ""
    )
