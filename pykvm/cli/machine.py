"""The machine that a command line describes."""

from __future__ import annotations

from pykvm.cli.exit_port import move
from pykvm.machine import Machine, MachineConfig
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.cli.options import Options

__all__ = ["config_of", "machine_of"]


def config_of(options: Options) -> MachineConfig:
    """What the machine is made from.  Raises as `MachineConfig` does, LoadError for a file."""
    fields = dict(options.config)
    if "fw_cfg" in fields:
        fields["fw_cfg"] = _files(fields["fw_cfg"])
    return MachineConfig(options.guest, args=options.arguments, **fields)


def machine_of(options: Options) -> Machine:
    """Make it.  Raises as `Machine` does."""
    machine = Machine(config_of(options))
    if options.debug_exit is not None:
        try:
            move(machine, options.debug_exit)
        except BaseException:
            machine.close()
            raise
    return machine


def _files(paths: Iterable[tuple[str, str]]) -> dict[str, bytes]:
    """The files for fw_cfg, by name."""
    from pykvm.boot import source_of

    return {name: bytes(source_of(path).data) for name, path in paths}
