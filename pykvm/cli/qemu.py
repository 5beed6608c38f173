"""QEMU's options, for those who have them in their fingers: docs/from-qemu.md is the page.

What has an equal here is replaced by it, word by word; for all else an error says what there is
instead.  The names are those of QEMU's manual, qemu(1).

>>> translate("append", ["console=ttyS0"], ())
['--append', 'console=ttyS0']
>>> translate("nographic", [], ())
[]
"""

from __future__ import annotations

from pykvm.cli.status import UsageError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["ALONE", "MISSING", "WITH_VALUE", "knows", "translate"]

SEE = "docs/from-qemu.md has QEMU's options"

#: Options without a value: the words that stand for them here.
ALONE: dict[str, tuple[str, ...]] = {
    # The console is a serial port on this terminal, KVM is all there is, a reset ends the run.
    "nographic": (),
    "enable-kvm": (),
    "no-reboot": (),
    "nodefaults": (),
    "no-user-config": (),
    "help": ("--help",),
    "version": ("--version",),
}

# What there is not: the sentence that says so, and what to use in its place.
_MISSING = {
    "there is no gdb stub yet: `pykvm step` stops at every VM exit": "s S gdb",
    "there is no disk yet: a kernel takes --initrd, and other files by --module or --fw-cfg": (
        "drive hda hdb hdc hdd cdrom fda fdb sd mtdblock blockdev snapshot boot"
    ),
    "there is no flash to write to yet: -bios FILE takes firmware as a ROM": "pflash",
    "there is no network yet": "netdev",
    "there is no display yet: the console is the serial port (--serial)": (
        "vnc spice full-screen curses k"
    ),
    "there is no monitor yet: Ctrl-A h lists what the console does, `pykvm step` looks inside": (
        "mon qmp qmp-pretty chardev"
    ),
    "snapshots are files: --save FILE writes one, `pykvm FILE` goes on from it": "loadvm incoming",
    "there is no USB yet": "usb usbdevice",
    "there is no sound": "audio audiodev",
    "there is no such device; in Python, `Machine.add` takes your own": (
        "global virtfs fsdev tpmdev watchdog-action smbios acpitable option-rom numa object"
    ),
    "--trace shows every VM exit, --dump-on-exit registers and code at the end": "d trace",
    "guest time is --clock: realtime, paused or warp": "icount",
    "RAM is anonymous memory": "mem-path mem-prealloc",
    "a run ends when the guest powers off, resets or crashes": "no-shutdown action",
    "there is nothing of that kind: leave it out": (
        "name uuid daemonize pidfile run-with runas chroot sandbox L msg overcommit readconfig set"
    ),
}

#: Options that have no equal, and what to say of each.
MISSING = {name: reason for reason, names in _MISSING.items() for name in names.split()}


def knows(name: str) -> bool:
    """Whether QEMU has an option of this name, given without its dashes."""
    return name in ALONE or name in WITH_VALUE or name in MISSING


def translate(name: str, rest: list[str], given: Collection[str]) -> list[str]:
    """What stands here for QEMU's option `name`.

    Its value is taken from `rest`, whose last word is the next one.  `given` are the options, as
    "--serial", that came before.  Raises UsageError where there is no equal.
    """
    if name in ALONE:
        return list(ALONE[name])
    if name in MISSING:
        raise _error(name, MISSING[name])
    if not rest or rest[-1] == "--":
        raise _error(name, "a value is missing")
    value = rest.pop()
    if name == "serial" and "--serial2" in given:
        raise _error(name, "there are two serial ports")
    if name == "serial" and "--serial" in given:
        return ["--serial2", _destination(name, value)]
    return WITH_VALUE[name](value)


def _error(name: str, message: str) -> UsageError:
    return UsageError(f"QEMU's -{name}: {message}", see=SEE)


def _fields(value: str, first: str) -> dict[str, str]:
    """The parts of "a,b=c,d": what has no "=" is `first` where it comes first, else it is on."""
    fields = {}
    for at, part in enumerate(value.split(",")):
        key, equals, text = part.partition("=")
        if equals:
            fields[key.replace("_", "-")] = text
        elif at == 0:
            fields[first] = part
        else:
            fields[part] = "on"
    return fields


def _same(flag: str) -> Callable[[str], list[str]]:
    """An option that means the same here."""
    return lambda value: [flag, value]


def _only(name: str, *words: str) -> Callable[[str], list[str]]:
    """An option of whose values some need nothing here, and no other has an equal."""

    def convert(value: str) -> list[str]:
        if value in words:
            return []
        raise _error(name, f"only {words[0]} has an equal, not {value!r}")

    return convert


def _destination(name: str, value: str) -> str:
    """A character device of QEMU's as --serial has it."""
    kind, _, path = value.removeprefix("mon:").partition(":")
    if kind in ("unix", "tcp"):
        path, *switches = path.split(",")
        if "server" not in switches and "server=on" not in switches:
            raise _error(name, f"pykvm listens and does not connect: {kind}:...,server=on")
        return f"{kind}:{path.lstrip(':')}"
    if kind == "null":
        return "none"
    if kind not in ("stdio", "file", "pty", "none"):
        raise _error(
            name,
            f"there is no {value!r}: choose stdio, file:PATH, pty, unix:PATH,server=on, "
            "tcp:HOST:PORT,server=on or none",
        )
    return f"{kind}:{path}" if path else kind


def _serial(value: str) -> list[str]:
    return ["--serial", _destination("serial", value)]


def _debugcon(value: str) -> list[str]:
    return ["--debugcon", _destination("debugcon", value)]


def _smp(value: str) -> list[str]:
    fields = _fields(value, "cpus")
    if fields.keys() != {"cpus"}:
        raise _error("smp", "it takes the number of vCPUs alone: each is a core of its own")
    return ["--smp", fields["cpus"]]


def _cpu(value: str) -> list[str]:
    model, comma, features = value.partition(",")
    # With KVM these are one (qemu-cpu-models(7)).
    return ["--cpu", f"{'host' if model == 'max' else model}{comma}{features}"]


_IRQCHIPS = {"on": "kernel", "off": "user", "split": "split"}


def _kvm(name: str, fields: dict[str, str]) -> list[str]:
    """What is common to -accel and -machine: KVM, and where its interrupt controllers are."""
    accel = fields.pop("accel", "kvm").partition(":")[0]
    where = fields.pop("kernel-irqchip", None)
    if accel != "kvm":
        raise _error(name, f"guests run on KVM alone, not on {accel!r}")
    if fields:
        raise _error(name, f"{next(iter(fields))!r} has no equal; accel and kernel-irqchip do")
    if where is None:
        return []
    if where not in _IRQCHIPS:
        raise _error(name, f"kernel-irqchip is one of {', '.join(_IRQCHIPS)}")
    return ["--irqchip", _IRQCHIPS[where]]


def _accel(value: str) -> list[str]:
    return _kvm("accel", _fields(value, "accel"))


def _machine(name: str) -> Callable[[str], list[str]]:
    def convert(value: str) -> list[str]:
        fields = _fields(value, "type")
        kind = fields.pop("type", "pc")
        if kind != "pc":
            raise _error(name, f"there is one machine, a PC: leave {kind!r} out")
        return _kvm(name, fields)

    return convert


def _device(value: str) -> list[str]:
    fields = _fields(value, "driver")
    if fields["driver"] != "isa-debug-exit":
        raise _error("device", f"there is no {fields['driver']!r} yet; isa-debug-exit there is")
    return ["--debug-exit", fields.get("iobase", "0x501"), "--exit-status", "qemu"]


def _fw_cfg(value: str) -> list[str]:
    fields = _fields(value, "name")
    if fields.keys() != {"name", "file"}:
        raise _error("fw_cfg", "it takes name=NAME,file=FILE; write a string to a file")
    return ["--fw-cfg", f"{fields['name']}={fields['file']}"]


#: Options with a value: what stands for them here.
WITH_VALUE: dict[str, Callable[[str], list[str]]] = {
    "kernel": _same("--kernel"),
    "append": _same("--append"),
    "initrd": _same("--initrd"),
    "bios": lambda value: ["--boot", "firmware", value],
    "smp": _smp,
    "cpu": _cpu,
    "accel": _accel,
    "machine": _machine("machine"),
    "M": _machine("M"),
    "serial": _serial,
    "debugcon": _debugcon,
    "device": _device,
    "fw_cfg": _fw_cfg,
    "D": _same("--trace-file"),
    "display": _only("display", "none"),
    "vga": _only("vga", "none"),
    "net": _only("net", "none"),
    "nic": _only("nic", "none"),
    "parallel": _only("parallel", "none"),
    "monitor": _only("monitor", "none"),
    "rtc": _only("rtc", "base=utc"),
}
