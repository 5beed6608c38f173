"""The machine that a command line describes."""

from __future__ import annotations

from pykvm.cli.exit_port import move
from pykvm.machine import Machine
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.cli.options import Options

__all__ = ["machine_of"]


def machine_of(options: Options) -> Machine:
    """Make it.  Raises as `Machine` does."""
    machine = Machine(
        options.guest,
        memory=options.memory,
        vcpus=options.smp,
        boot=options.boot,
        mode=options.mode,
        load_address=options.load_address,
        entry=options.entry,
        stack=options.stack,
        append=options.append,
        append_only=options.append_only,
        args=options.arguments,
        initrd=options.initrd,
        modules=options.module,
        kernel=options.kernel,
        fw_cfg=_files(options),
        cpu=options.cpu,
        unclaimed=options.unclaimed,
        irqchip=options.irqchip,
        clock=options.clock,
        quirks=options.quirks,
        emulate=options.emulate,
    )
    if options.debug_exit is not None:
        try:
            move(machine, options.debug_exit)
        except BaseException:
            machine.close()
            raise
    return machine


def _files(options: Options) -> dict[str, bytes]:
    """The files for fw_cfg, by name."""
    if not options.fw_cfg:
        return {}
    from pykvm.boot import source_of

    return {name: bytes(source_of(path).data) for name, path in options.fw_cfg}
