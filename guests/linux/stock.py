#!/usr/bin/env python3
"""Fetch Debian's own kernel for virtual machines, and print where it is.

It is downloaded, not installed, and kept beside what build.py makes.
"""

from __future__ import annotations

import re
import subprocess
import sys

from artifacts import Artifact, Build, BuildError

METAPACKAGE = "linux-image-cloud-amd64"


def main() -> int:
    try:
        stock = kernel()
        stock.build()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(stock.directory / "vmlinuz")
    return 0


def kernel() -> Artifact:
    """The kernel that the metapackage stands for.  Raises BuildError if apt knows none."""
    depends = output_of("apt-cache", "depends", "--important", METAPACKAGE)
    image = re.search(r"Depends: (linux-image-\S+)", depends)
    if image is None:
        raise BuildError(f"apt knows no {METAPACKAGE}: apt-get update")
    policy = output_of("apt-cache", "policy", image[1])
    version = re.search(r"Candidate: (\S+)", policy)
    assert version is not None, policy
    return Artifact(
        title=f"{image[1]} {version[1]} from Debian's archive",
        name=f"{image[1]}-{version[1]}",
        files=("vmlinuz",),
        minutes=0,
        make=lambda build: fetch(image[1], build),
    )


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError as error:
        raise BuildError(f"{error.filename} is missing: this needs Debian") from None


def fetch(package: str, build: Build) -> None:
    """Download and unpack; of the package only the kernel is kept."""
    # A download as another user, apt's default, may not write here.
    build.run("apt-get", "-o", "APT::Sandbox::User=root", "download", package)
    (archive,) = build.tree.glob("*.deb")
    build.run("dpkg-deb", "--extract", archive, "unpacked")
    (image,) = (build.tree / "unpacked" / "boot").glob("vmlinuz-*")
    image.rename(build.result / "vmlinuz")


if __name__ == "__main__":
    sys.exit(main())
