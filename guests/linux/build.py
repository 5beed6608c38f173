#!/usr/bin/env python3
"""Build Linux and its initramfs for the tests, or find what was built.

    build.py              build what is missing, and put links to it into guests/build/linux
    build.py --optional   the same, but where packages are missing say so and leave it at that
    build.py --find       build nothing; print where all of it is or, if something is missing, which
                          command makes it
    build.py --packages   print the Debian packages that are missing

What is found is printed as JSON: the name of each file and its path.  All are in $PYKVM_CACHE,
else $XDG_CACHE_HOME/pykvm, else ~/.cache/pykvm.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import initramfs
from artifacts import Artifact, Build, BuildError, digest

HERE = Path(__file__).parent
CONFIG = HERE / "config"
SOURCES = "/usr/src/linux-source-*.tar.xz"
LINKS = HERE.parent / "build" / "linux"
BUSYBOX = Path("/bin/busybox")

#: Which Debian package brings what: a program, or a file by its pattern.
PACKAGES = {
    "bc": "bc",
    "binutils": "ld",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "libc6-dev": "/usr/lib/*/libc.a",
    "libelf-dev": "/usr/include/gelf.h",
    "linux-source": SOURCES,
    "lz4": "lz4",
    "make": "make",
    "perl": "perl",
    "xz-utils": "xz",
}

# Most of the source is drivers; what is not unpacked need not be deleted.
UNUSED = (
    *("drivers/gpu", "drivers/infiniband", "drivers/media", "drivers/net", "drivers/scsi"),
    *("drivers/staging", "drivers/usb", "sound"),
)

# The kernel's banner names these, so they are the same on every machine that builds it.
VARIABLES = (
    "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER=pykvm",
    "KBUILD_BUILD_HOST=guests",
)
MINUTES = 5


def main() -> int:
    parser = argparse.ArgumentParser(description="Build Linux for the tests, or find it.")
    parser.add_argument("--find", action="store_true", help="build nothing")
    parser.add_argument("--optional", action="store_true", help="packages may be missing")
    parser.add_argument("--packages", action="store_true", help="print those that are missing")
    options = parser.parse_args()
    missing = missing_packages()
    if options.packages:
        print(*missing)
        return 0
    if missing:
        print(f"Linux for the tests needs: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 0 if options.optional else 1
    artifacts = (kernel(), initial_ramdisk())
    try:
        for artifact in artifacts:
            if options.find and not artifact.is_there:
                raise BuildError(f"{artifact.title} is not built yet: make guest-linux")
            artifact.build()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    paths = {name: a.directory / name for a in artifacts for name in a.files}
    link(paths)
    if options.find:
        print(json.dumps({name: str(path) for name, path in paths.items()}))
    else:
        print(f"{', '.join(paths)} are in {os.path.relpath(LINKS)}")
    return 0


def link(paths: dict[str, Path]) -> None:
    """Have each file at a place that a person can type."""
    LINKS.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        new = LINKS / f"{name}.{os.getpid()}"
        new.symlink_to(path)
        new.replace(LINKS / name)


def missing_packages() -> list[str]:
    """The Debian packages to install before anything can be built."""
    missing = [
        package
        for package, what in PACKAGES.items()
        if not (glob.glob(what) if what.startswith("/") else shutil.which(what))
    ]
    return missing if is_static(BUSYBOX) else [*missing, "busybox-static"]


def is_static(program: Path) -> bool:
    """Whether `program` is there and needs no dynamic loader."""
    return program.exists() and b"/ld-linux" not in program.read_bytes()[:4096]


def kernel() -> Artifact:
    """The kernel: the newest that Debian has the source of here, configured our way."""
    source = max(map(Path, glob.glob(SOURCES)), key=numbers_in)
    package = source.name.removesuffix(".tar.xz")
    query = ["dpkg-query", "--show", "--showformat=${Version}", package]
    version = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    return Artifact(
        title=f"Linux {version}",
        name=f"linux-{version}-{digest(version, CONFIG.read_bytes(), *VARIABLES)}",
        files=("vmlinux", "bzImage", "System.map", ".config"),
        minutes=MINUTES,
        make=lambda build: make_kernel(source, build),
    )


def numbers_in(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def make_kernel(source: Path, build: Build) -> None:
    """Unpack, configure, compile."""
    excluded = [f"--exclude=*/{name}/*.[ch]" for name in UNUSED]
    build.run("tar", "--extract", "--strip-components=1", f"--file={source}", *excluded)
    make = ("make", f"-j{len(os.sched_getaffinity(0))}", *VARIABLES)
    build.run(*make, "tinyconfig")
    build.run("scripts/kconfig/merge_config.sh", "-m", ".config", CONFIG)
    build.run(*make, "olddefconfig")
    check_configuration((build.tree / ".config").read_text())
    build.run(*make, "--silent", "bzImage")
    build.run("cp", ".config", "System.map", "arch/x86/boot/bzImage", build.result)
    # KASLR's relocations stay in the linked kernel, where only the build needs them.
    strip = ("objcopy", "--strip-debug", "--remove-relocations=*")
    build.run(*strip, "vmlinux", build.result / "vmlinux")


def check_configuration(built: str) -> None:
    """Raise BuildError if a line of our configuration did not take effect."""
    lines = built.splitlines()
    for line in CONFIG.read_text().splitlines():
        if unset := re.fullmatch(r"# (CONFIG_\w+) is not set", line):
            if any(other.startswith(f"{unset[1]}=") for other in lines):
                raise BuildError(f"{CONFIG}: {unset[1]} cannot be off: something selects it")
        elif line.startswith("CONFIG_") and line not in lines:
            raise BuildError(f"{CONFIG}: {line} has no effect: what it depends on is missing")


def initial_ramdisk() -> Artifact:
    """The initramfs, with busybox and our programs in it."""
    names = ("init", "inittab", "checks", "environment", "fpsig.c", "initramfs.py")
    inputs = [HERE / name for name in names]
    return Artifact(
        title="the initramfs",
        name=f"initramfs-{digest(BUSYBOX.read_bytes(), *(path.read_bytes() for path in inputs))}",
        files=("initramfs.cpio",),
        minutes=0,
        make=make_initial_ramdisk,
    )


def make_initial_ramdisk(build: Build) -> None:
    """Compile and pack."""
    program = build.tree / "fpsig"
    options = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-s")
    build.run("gcc", *options, HERE / "fpsig.c", "-lm", "-o", program)
    entries = initramfs.entries(BUSYBOX.read_bytes(), {"fpsig": program.read_bytes()})
    (build.result / "initramfs.cpio").write_bytes(initramfs.archive(entries))


if __name__ == "__main__":
    sys.exit(main())
