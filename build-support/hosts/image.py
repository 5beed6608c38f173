"""The system of an emulated host: Debian's kernel with its own KVM modules, Python, and a compiler.

It is made of Debian packages, which apt finds and downloads as it does for this machine, without
root and without installing one, and of the Python packages that the tests use here, in the same
versions.  It is kept in the cache of guests/linux/build.py, and rebuilt only when one of these
changes.  What is under test is not in it (tree.py).
"""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from artifacts import Artifact, Build, BuildError, digest
from initramfs import Entry, archive

__all__ = ["CYLINDER", "FILES", "TREE", "image", "missing_tools", "pack"]

HERE = Path(__file__).parent

#: What is made: the kernel, what it starts with, and the file system that it goes on with.
FILES = ("vmlinuz", "initramfs.cpio", "root.img")

KERNEL = "linux-image-cloud-amd64"
DEBIAN = (
    *("bash", "gcc", "libc-bin", "libc6-dev", "make", "ncurses-base", "seabios"),
    *("python3", "python-is-python3"),
)
PYTHON = (
    *("cffi", "construct", "pyelftools", "lz4", "backports.zstd"),
    *("hypothesis", "pytest", "pytest-timeout"),
)
#: The disks of either emulator, and KVM for either processor; other modules follow from these.
MODULES = ("virtio_blk", "virtio_pci", "ata_piix", "sd_mod", "kvm", "kvm-amd", "kvm-intel")

#: Which Debian package brings what this needs on the machine that makes the image.
TOOLS = {"apt": "apt-get", "dpkg": "dpkg-deb", "e2fsprogs": "mke2fs", "tar": "tar"}

#: Where the disk of what is under test is mounted (tree.py, init).
TREE = "/pykvm"

# Bochs takes a disk only if it is a whole number of cylinders of 16 heads and 63 sectors.
CYLINDER = 16 * 63 * 512
CYLINDERS = 1400
WEEK = 7 * 24 * 3600

USERS = "root:x:0:0:root:/tmp:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
GROUPS = "root:x:0:\ntty:x:5:\nkvm:x:100:\nnogroup:x:65534:\n"


def missing_tools() -> list[str]:
    """The Debian packages to install before an image can be made."""
    return [package for package, tool in TOOLS.items() if not which(tool)]


def which(tool: str) -> str | None:
    """Where `tool` is; those for the administrator are not on everybody's path."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")


def image() -> Artifact:
    """The image as the packages of today make it.  Raises BuildError if apt cannot find them."""
    debian = [line.split()[1] for line in apt("--print-uris").splitlines()]
    if not any(name.startswith("linux-image-") for name in debian):
        raise BuildError(f"apt knows no {KERNEL}: apt-get update, on Debian")
    python = requirements()
    inputs = [(HERE / name).read_bytes() for name in ("image.py", "init")]
    name = digest(*sorted(debian), *python, *inputs)
    return Artifact(
        title="a Debian with KVM for emulated hosts",
        name=f"host-{name}",
        files=FILES,
        minutes=1,
        make=lambda build: make(build, python),
    )


def requirements() -> list[str]:
    """The Python packages, as pip wants to be told, in the versions that are installed here."""
    # Python 3.14 brings what backports.zstd is for.
    optional = {"backports.zstd"} if sys.version_info >= (3, 14) else set()
    try:
        return [f"{name}=={version(name)}" for name in PYTHON if name not in optional]
    except PackageNotFoundError as error:
        raise BuildError(f"{error.name} is not installed: make venv") from None


def apt(*options: str, archives: Path | None = None) -> str:
    """Have apt install the packages, and what they depend on, where nothing is installed yet."""
    with tempfile.TemporaryDirectory() as directory:
        # apt reads this file for what is installed: nothing.
        status = Path(directory, "status")
        status.touch()
        command = [
            *("apt-get", "install", "--yes", "-qq", "--no-install-recommends", *options),
            *("-o", f"Dir::State::Status={status}", "-o", "Debug::NoLocking=1"),
            *("-o", f"Dir::Cache::archives={archives or directory}"),
            # Another user, as whom apt downloads by default, may not write there.
            *("-o", "APT::Sandbox::User=root"),
            *(*DEBIAN, "busybox-static", KERNEL),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{done.stderr.strip()}\napt does not find the packages: apt-get update")
    return done.stdout


def make(build: Build, python: list[str]) -> None:
    """Download, unpack, and pack."""
    archives, kernel, root = (build.tree / name for name in ("archives", "kernel", "root"))
    (archives / "partial").mkdir(parents=True)
    apt("--download-only", archives=archives)
    make_directories(root)
    kernel.mkdir()
    for package in sorted(archives.glob("*.deb")):
        is_kernel = package.name.startswith("linux-image-")
        unpack(build, package, kernel if is_kernel else root)
    finish(build, root, python)
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    vmlinuz.rename(build.result / "vmlinuz")
    busybox = (root / "bin/busybox").read_bytes()
    (build.result / "initramfs.cpio").write_bytes(archive(initramfs(busybox, kernel)))
    pack(build, root, build.result / "root.img", CYLINDERS)
    forget_old_ones(build.tree.parent.parent)


def forget_old_ones(directory: Path) -> None:
    """Remove the images that nothing used for a week: each takes 350 MB."""
    for image in directory.glob("host-*/root.img"):
        if time.time() - image.stat().st_atime > WEEK:
            shutil.rmtree(image.parent, ignore_errors=True)


def make_directories(root: Path) -> None:
    """Make those that have to be there first: /bin and its like are links into /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "etc", "proc", "sys", "tmp", TREE.strip("/")):
        (root / name).mkdir()


def unpack(build: Build, package: Path, directory: Path) -> None:
    """Unpack a Debian package; dpkg-deb --extract would put directories in the links' place."""
    tar = f"tar --extract --keep-directory-symlink --directory {shlex.quote(str(directory))}"
    build.run("sh", "-c", f'dpkg-deb --fsys-tarfile "$1" | {tar}', "sh", package)


def finish(build: Build, root: Path, python: list[str]) -> None:
    """Do what the packages' scripts would, as far as it matters here."""
    (root / "etc/passwd").write_text(USERS)
    (root / "etc/group").write_text(GROUPS)
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("bash")
    applets = subprocess.run(
        [root / "bin/busybox", "--list"], capture_output=True, text=True, check=True
    )
    for name in applets.stdout.split():
        places = (root / "usr/bin" / name, root / "usr/sbin" / name)
        if not any(place.exists() or place.is_symlink() for place in places):
            places[0].symlink_to("/usr/bin/busybox")
    # The system's own Python looks for packages here.
    packages = root / "usr/lib/python3/dist-packages"
    program = (root / "usr/bin/python3").readlink().name
    build.run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"),
        *("--only-binary=:all:", "--python-version", program.removeprefix("python")),
        *("--target", str(packages), *python),
    )
    # What is under test, as `pip install --editable` would have it.
    (packages / "pykvm.pth").write_text(f"{TREE}\n")
    # Compiled once here, else at each boot, by the Python of the image with its own libraries.
    loader = next((root / "lib64").glob("ld-linux-*.so.*"))
    libraries = str(loader.resolve().parent)
    standard = root / "usr/lib" / program
    build.run(
        *("env", f"PYTHONHOME={root / 'usr'}", str(loader), "--library-path", libraries),
        *(str(root / "usr/bin" / program), "-m", "compileall", "-q", "-s", str(root), "-p", "/"),
        *("-x", "lib2to3|/test/", str(packages), str(standard)),
    )


def pack(build: Build, directory: Path, disk: Path, cylinders: int) -> None:
    """Make a disk of a directory."""
    mke2fs = which("mke2fs")
    assert mke2fs is not None
    options = ("-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-m", "0")
    build.run(mke2fs, *options, "-d", directory, disk, f"{cylinders * CYLINDER // 1024}k")


def initramfs(busybox: bytes, kernel: Path) -> list[Entry]:
    """What the kernel starts with: busybox, modules in the order to load them, and `init`."""
    executable = stat.S_IFREG | 0o755
    modules = list(in_order(kernel))
    return [
        *(
            Entry(name, stat.S_IFDIR | 0o755)
            for name in ("bin", "dev", "modules", "proc", "system")
        ),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("bin/busybox", executable, busybox),
        Entry("init", executable, (HERE / "init").read_bytes()),
        *(
            Entry(f"modules/{number:02d}-{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
            for number, path in enumerate(modules)
        ),
    ]


def in_order(kernel: Path) -> Iterator[Path]:
    """The kernel's modules of MODULES, each after those that it says it depends on."""
    paths = {path.stem.replace("-", "_"): path for path in kernel.rglob("*.ko")}
    done: set[str] = set()

    def visit(name: str) -> Iterator[Path]:
        # What is no module is built into the kernel.
        if name in done or name not in paths:
            return
        done.add(name)
        depends = re.search(rb"\0depends=([^\0]*)\0", paths[name].read_bytes())
        for other in depends[1].decode().split(",") if depends else ():
            yield from visit(other.replace("-", "_"))
        yield paths[name]

    for name in MODULES:
        yield from visit(name.replace("-", "_"))
