"""The emulators: QEMU, which knows AMD's SVM, and Bochs, which knows Intel's VMX.

Each boots a kernel with an initramfs and two disks, writes what comes from two serial ports to
files, and ends when the guest powers off.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from artifacts import Build
from image import CYLINDER, which

__all__ = ["EMULATORS", "Emulator", "Host"]


class Host(NamedTuple):
    """What to boot, and where what it says goes: the kernel to `console`, the tests to `report`."""

    kernel: Path
    initramfs: Path
    #: The disks: Debian, and what is under test.
    system: Path
    tree: Path
    console: Path
    report: Path
    #: Of the kernel's command line, beside ours.
    words: tuple[str, ...] = ()

    def command_line(self, disks: str, *words: str) -> str:
        """The kernel's; `disks` is what it calls them, without the last letter."""
        ours = (
            f"system={disks}a",
            f"tree={disks}b",
            "console=ttyS0",
            "mitigations=off",
            "panic=-1",
        )
        return " ".join((*ours, *self.words, *words))


class Emulator(NamedTuple):
    """An emulator of a processor's virtualization: what it needs, and how to start it."""

    title: str
    #: Which Debian package brings what: a program, or a file by its path.
    packages: dict[str, str]
    start: Callable[[Host, Build], subprocess.Popen[bytes]]

    def missing(self) -> list[str]:
        """The Debian packages to install before it can be started."""
        return [
            package
            for package, what in self.packages.items()
            if not (Path(what).exists() if what.startswith("/") else which(what))
        ]


def start_qemu(host: Host, build: Build) -> subprocess.Popen[bytes]:
    """Start QEMU: two processors, in turns.

    With a thread for each QEMU 7.2 hangs as soon as both have entered a guest.
    """
    command = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=single"),
        *("-cpu", "EPYC,+svm,+npt", "-smp", "2", "-m", "2G"),
        *("-display", "none", "-nodefaults", "-no-reboot"),
        *("-serial", f"file:{host.console}", "-serial", f"file:{host.report}"),
        *("-drive", f"file={host.system},format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={host.tree},format=raw,if=virtio"),
        *("-kernel", str(host.kernel), "-initrd", str(host.initramfs)),
        *("-append", host.command_line("vd")),
    ]
    with build.log.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


BOCHS = """\
display_library: rfb, options="timeout=0"
megs: 1024
cpu: model=corei7_skylake_x, count=1, ips=50000000, reset_on_triple_fault=1
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, mode=volatile, path={host.system}, cylinders={system}, heads=16, spt=63
ata0-slave: type=disk, mode=flat, path={host.tree}, cylinders={tree}, heads=16, spt=63
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=cdrom, path={cdrom}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={host.console}
com2: enabled=1, mode=file, dev={host.report}
log: {log}
clock: sync=none, time0=utc
panic: action=fatal
error: action=ignore
info: action=ignore
"""

GRUB = """\
set timeout=0
menuentry host {{
    linux /vmlinuz {words}
    initrd /initramfs.cpio
}}
"""


def start_bochs(host: Host, build: Build) -> subprocess.Popen[bytes]:
    """Start Bochs: one processor, which checks every rule of VM entry that the manual has.

    It has no kernel loader, so it boots from a CD with GRUB on it.
    """
    files = build.tree / "cdrom"
    (files / "boot/grub").mkdir(parents=True)
    shutil.copy(host.kernel, files / "vmlinuz")
    shutil.copy(host.initramfs, files / "initramfs.cpio")
    words = host.command_line("sd", "quiet", "nosmp")
    (files / "boot/grub/grub.cfg").write_text(GRUB.format(words=words))
    cdrom = build.result / "cdrom.iso"
    build.run("grub-mkrescue", "-o", cdrom, files)
    settings = BOCHS.format(
        host=host,
        system=cylinders(host.system),
        tree=cylinders(host.tree),
        cdrom=cdrom,
        log=build.log.with_suffix(".bochs.log"),
    )
    bochsrc, rc = build.result / "bochsrc", build.result / "rc"
    bochsrc.write_text(settings)
    # Debian's build starts in its debugger: `c` lets it go on.
    rc.write_text("c\n")
    command = ["bochs", "-q", "-f", str(bochsrc), "-rc", str(rc)]
    with build.log.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def cylinders(disk: Path) -> int:
    return disk.stat().st_size // CYLINDER


EMULATORS = {
    "amd": Emulator(
        title="kvm_amd in QEMU's emulation of SVM",
        packages={"qemu-system-x86": "qemu-system-x86_64"},
        start=start_qemu,
    ),
    "intel": Emulator(
        title="kvm_intel in Bochs' emulation of VMX",
        packages={
            "bochs": "bochs",
            "bochsbios": "/usr/share/bochs/BIOS-bochs-latest",
            "vgabios": "/usr/share/bochs/VGABIOS-lgpl-latest",
            "grub-common": "grub-mkrescue",
            "grub-pc-bin": "/usr/lib/grub/i386-pc/cdboot.img",
            "mtools": "mformat",
            "xorriso": "xorriso",
        },
        start=start_bochs,
    ),
}
