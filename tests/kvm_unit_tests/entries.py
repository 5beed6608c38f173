"""The entries of x86/unittests.cfg: which file runs with which processors and arguments.

Source: kvm-unit-tests, docs/unittests.txt.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SECTION = re.compile(r"\[([^]]+)\]")
# What the file leaves to a shell.
_NOW = "`date +%s`"


class Entry(NamedTuple):
    """One entry; `options` are QEMU's for it, but for -cpu and -m."""

    name: str
    file: Path
    arguments: str = ""
    vcpus: int = 1
    cpu: str = ""
    memory: str = ""
    options: tuple[str, ...] = ()
    groups: frozenset[str] = frozenset()
    arch: str = ""

    @property
    def model(self) -> str:
        """QEMU's name of the processor, "" if the entry does not say."""
        return self.cpu.partition(",")[0]

    @property
    def device(self) -> str:
        """The first device that the entry adds to QEMU's machine; "" for none."""
        words = iter(self.options)
        return next((next(words) for word in words if word == "-device"), "").partition(",")[0]

    @property
    def features(self) -> tuple[str, ...]:
        """What is added to the model and removed from it: "+x2apic", "vendor=GenuineIntel"."""
        return tuple(self.cpu.split(",")[1:])


def read_entries(tree: Path) -> list[Entry]:
    """The entries for x86-64 in a checkout, in the file's order, but for those of VMX and SVM."""
    text = (tree / "x86" / "unittests.cfg").read_text()
    return [entry for entry in parse_entries(text, tree / "x86") if _concerns_us(entry)]


def parse_entries(text: str, folder: Path) -> Iterator[Entry]:
    """All entries; their files are in `folder`."""
    name, fields = "", dict[str, str]()
    for line in text.splitlines():
        if found := _SECTION.match(line):
            if name:
                yield _entry(name, fields, folder)
            name, fields = found[1], {}
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            fields[key.strip()] = value.strip()
    if name:
        yield _entry(name, fields, folder)


def _entry(name: str, fields: dict[str, str], folder: Path) -> Entry:
    options = {"-cpu": "", "-m": ""}
    others = []
    words = iter(shlex.split(fields.get("qemu_params", "")))
    for word in words:
        if word in options:
            options[word] = next(words)
        elif word != "-enable-kvm":
            others.append(word)
    arguments = fields.get("test_args", "").replace(_NOW, str(int(time.time())))
    return Entry(
        name=name,
        file=folder / fields["file"],
        arguments=" ".join(shlex.split(arguments)),
        vcpus=int(fields.get("smp", "1")),
        cpu=options["-cpu"],
        memory=options["-m"],
        options=tuple(others),
        groups=frozenset(fields.get("groups", "").split()),
        arch=fields.get("arch", ""),
    )


def _concerns_us(entry: Entry) -> bool:
    nested = entry.name.startswith(("vmx", "svm", "ept")) and entry.file.stem != "vmexit"
    return entry.arch != "i386" and not nested
