"""The machine that a command line describes."""

from __future__ import annotations

from pykvm.cli.exit_port import move
from pykvm.cli.options import spell
from pykvm.cli.status import UsageError
from pykvm.machine import Machine, MachineConfig
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.cli.options import Options

__all__ = ["config_of", "goes_on", "machine_of"]


def goes_on(options: Options) -> bool:
    """Whether the guest file is a snapshot, to go on from."""
    from pykvm.savefile.magic import is_saved_file

    return is_saved_file(options.guest)


def config_of(options: Options) -> MachineConfig:
    """What the machine is made from.  Raises as `MachineConfig` does, LoadError for a file."""
    fields = dict(options.config)
    if "fw_cfg" in fields:
        fields["fw_cfg"] = _files(fields["fw_cfg"])
    return MachineConfig(options.guest, args=options.arguments, **fields)


def machine_of(options: Options) -> Machine:
    """Make it.  Raises as `Machine` does, UsageError for options that do not go with its file."""
    if goes_on(options):
        return _restored(options)
    for flag, given in (("--force", options.force), ("--wall", options.wall)):
        if given:
            raise UsageError(
                f"{flag} is for a file that --save has made, and {options.guest} is none"
            )
    machine = Machine(config_of(options))
    if options.debug_exit is not None:
        try:
            move(machine, options.debug_exit)
        except BaseException:
            machine.close()
            raise
    return machine


def _restored(options: Options) -> Machine:
    """One that goes on from a snapshot, in which all is settled."""
    from pykvm.machine.snapshot import Snapshot

    given = [spell(name, None) for name in options.config]
    given += ["--debug-exit"] * (options.debug_exit is not None)
    given += ["what follows --"] * bool(options.arguments)
    if given:
        raise UsageError(f"{options.guest} is a snapshot, which settles {', '.join(given)}")
    saved = Snapshot.load(options.guest, force=options.force)
    return Machine.from_snapshot(saved, wall=options.wall or "keep")


def _files(paths: Iterable[tuple[str, str]]) -> dict[str, bytes]:
    """The files for fw_cfg, by name."""
    from pykvm.boot import source_of

    return {name: bytes(source_of(path).data) for name, path in paths}
