"""The text of `pykvm --help`, made from the table of options."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from textwrap import fill

from pykvm.cli.options import OPTIONS, Option

__all__ = ["help_text"]

_WIDTH = 96
_COLUMN = 28

_USAGE = """\
Run a guest on a KVM virtual machine.

usage: pykvm [run] GUEST [options] [-- guest arguments]
       pykvm step GUEST [options] [-- guest arguments]
       pykvm info [--json]
       pykvm snapshot info FILE... [--verify] [--json]
       pykvm snapshot diff FILE FILE

  run       run the guest to its end (the default)
  step      stop at every VM exit: why it happened, its answer, registers and memory
  info      what KVM offers on this host, and what to do where something is missing
  snapshot  what is in files of --save, and how two differ (status 1 if they do)

GUEST is a static ELF64 (starts in long mode) or ELF32 (protected mode), or a flat binary (real
mode unless --mode says otherwise), a kernel, or a snapshot that --save wrote, which goes on from
there.  Write a file that is named run, step, info or snapshot as ./run and so on.
"""

_EXAMPLES = """\
Examples:
  pykvm hello.elf
  pykvm --memory 256M --timeout 10 kernel.elf -- console verbose
  pykvm --mode real --load-address 0x7c00 bootsector.bin
  pykvm --timeout 60 --until 'login: ' bzImage --initrd initramfs.cpio
  pykvm --serial unix:/tmp/guest.sock --trace-file exits.txt --stats guest.elf
  pykvm bzImage --initrd initramfs.cpio --until 'login: ' --save booted.pykvm; pykvm booted.pykvm
  pykvm step hello.elf

While the terminal is the guest's console, Ctrl-A x ends the run and Ctrl-A h lists what else
Ctrl-A does.  Ctrl-C stops a guest that has read nothing yet; one that reads its input, as Linux
with a shell does, gets Ctrl-C, and a second one within a second ends the run.

Exit status:
  N    the guest exited with code N (above 255: 255, and a line says so)
  0    also: the guest halted for good, asked for a reset, or was left with Ctrl-A x; or it said
       what --until waits for
  2    wrong use: an option, a value or a guest file that makes no sense
  123  in the place of 0 where the guest ended before it said what --until waits for, or before
       --save
  124  the time given by --timeout is up
  125  the guest crashed: triple fault, failed entry, refused instruction, wild access
  126  this host or pykvm failed
  130  Ctrl-C; 128 + N for any other signal N
A line on stderr always says how the run ended, so a guest's own 124 cannot be taken for pykvm's.

The JSON lines of --trace=json have the keys seq, time (seconds since the start), vcpu, rip, symbol,
exit (a class of pykvm.exits) and that exit's fields, device and answer (null where there is none).
rip, port, address and the like are integers; data is a string of hex, answer one as in 0x60.
The last line has outcome, reason (a sentence), kind (of a crash), exit_code, exits (by kind),
seconds, guest_seconds and outside_seconds.

PYKVM_TRACEBACK=1 in the environment shows the Python traceback of an error.
"""


def _row(option: Option) -> str:
    name = f"{option.short}, {option.flag}" if option.short else f"    {option.flag}"
    if option.metavar:
        name += f"[={option.metavar}]" if option.bare is not None else f" {option.metavar}"
    indent = " " * _COLUMN
    text = fill(option.help, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    start = f"  {name}"
    return start.ljust(_COLUMN) + text[_COLUMN:] if len(start) < _COLUMN - 1 else f"{start}\n{text}"


def help_text() -> str:
    """Everything that ``pykvm --help`` prints."""
    parts = [_USAGE]
    for group, options in groupby(OPTIONS, key=attrgetter("group")):
        parts.append("\n".join([f"{group}:", *map(_row, options), ""]))
    parts.append(_EXAMPLES)
    return "\n".join(parts)
