"""Ring 3 that keeps an old translation after the VMM has rewritten live page tables.

The guest loads CR3 anew, as any processor wants it after such a change; ring 3 still reads the page
that the old entry named.  What rewrites the tables of a guest that has run, as `GuestMemory.thaw`
may, has to delete a memory slot after it: KVM then drops all translations (`thaw(flush=True)`).
"""

from __future__ import annotations

from pykvm.quirks.probe_vm import OTHER, SCRATCH, map_page
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["QUIRK"]

READ = bytes.fromhex("8A06")  # mov al, [rsi]
RELOAD_CR3 = bytes.fromhex("0F20D8 0F22D8")  # mov rax, cr3; mov cr3, rax
_OLD, _NEW = 0x0D, 0x0E


def _stale(vm: ProbeVM) -> bool:
    vm.memory.write_u8(SCRATCH, _OLD)
    vm.memory.write_u8(OTHER, _NEW)
    vm.run(READ, 3, {"rsi": SCRATCH})
    map_page(vm.memory, SCRATCH, OTHER)
    try:
        vm.run(RELOAD_CR3, 0)
        return vm.run(READ, 3, {"rsi": SCRATCH}).state.rax & 0xFF == _OLD
    finally:
        map_page(vm.memory, SCRATCH, SCRATCH)


QUIRK = Quirk(
    "stale-mappings",
    "ring 3 keeps the old mapping where the VMM rewrites the page tables of a running guest",
    _stale,
)
