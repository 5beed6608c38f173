"""The machine that a command line describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.machine import Machine

if TYPE_CHECKING:
    from pykvm.cli.options import Options

__all__ = ["machine_of"]


def machine_of(options: Options) -> Machine:
    """Make it.  Raises as `Machine` does."""
    return Machine(
        options.guest,
        memory=options.memory,
        vcpus=options.smp,
        boot=options.boot,
        mode=options.mode,
        load_address=options.load_address,
        append=options.append,
        args=options.arguments,
        initrd=options.initrd,
        modules=options.module,
        cpu=options.cpu,
        unclaimed=options.unclaimed,
        irqchip=options.irqchip,
        clock=options.clock,
        quirks=options.quirks,
        emulate=options.emulate,
    )
