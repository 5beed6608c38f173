"""`pykvm info`: what is read of a host, what is tried, and what it advises."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pykvm.cli.facts import device, modules, processor
from pykvm.cli.info import advice, info_text
from pykvm.cli.probes import PROBES, Probe, Verdict
from pykvm.errors import HostError
from pykvm.kvm import Cap
from support.ring_3 import INT_N_ERROR

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]

INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R)
flags\t\t: fpu vmx ept hypervisor
vmx flags\t: vnmi ept vpid unrestricted_guest

processor\t: 1
model name\t: another
"""
AMD = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
flags\t\t: fpu svm npt nrip_save avic
"""


def facts(**changes: Any) -> dict[str, Any]:
    """A host where all is well."""
    return {
        "kernel": "Linux 6.1 x86_64",
        "device": {
            "path": "/dev/kvm", "exists": True, "usable": True,
            "mode": "crw-rw----", "owner": "root", "group": "kvm",
        },
        "processor": {
            "model": "a processor", "vendor": "", "virtualization": ["VT-x"], "features": [],
            "in_a_vm": False,
        },
        "modules": {"kvm": {}, "kvm_intel": {"nested": "Y"}},
        "api_version": 12,
        "capabilities": {cap.name: 1 for cap in Cap},
        "probes": [{"probe": "a guest runs", "works": True, "detail": ""}],
        "models": {"x86-64-v1": [], "x86-64-v2": ["cx16", "popcnt"]},
        "quirks": [
            {"quirk": "syscall", "wrong": "it stays", "workaround": "so", "cost": "much"},
            {"quirk": "bit-counts", "wrong": "they lie", "workaround": "", "cost": ""},
        ],
        "advice": [],
        **changes,
    }  # fmt: skip


def test_processor(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(INTEL)
    assert processor(path) == {
        "model": "Intel(R) Xeon(R)",
        "vendor": "GenuineIntel",
        "virtualization": ["VT-x"],
        "features": ["vnmi", "ept", "vpid", "unrestricted_guest"],
        "in_a_vm": True,
    }
    path.write_text(AMD)
    found = processor(path)
    assert found["virtualization"] == ["SVM"]
    assert found["features"] == ["npt", "nrip_save", "avic"]
    assert processor(tmp_path / "missing")["virtualization"] == []


def test_modules(tmp_path: Path) -> None:
    for name in ("kvm", "kvm_amd", "loop"):
        (tmp_path / name / "parameters").mkdir(parents=True)
        (tmp_path / name / "parameters" / "nested").write_text("1\n")
    assert modules(tmp_path) == {"kvm": {"nested": "1"}, "kvm_amd": {"nested": "1"}}


def test_device(tmp_path: Path) -> None:
    missing = device(tmp_path / "kvm")
    assert (missing["exists"], missing["usable"]) == (False, False)
    (tmp_path / "kvm").touch(mode=0o600)
    there = device(tmp_path / "kvm")
    assert there["mode"] == "-rw-------"
    assert there["usable"]


def test_advice() -> None:
    assert advice(facts()) == []
    gone = facts(
        error="cannot open /dev/kvm: No such file or directory",
        hint="load the module",
        device={"path": "/dev/kvm", "exists": False, "usable": False, "error": "gone"},
        processor={
            "model": "", "vendor": "", "virtualization": [], "features": [], "in_a_vm": True,
        },
    )  # fmt: skip
    words = advice(gone)
    assert words[:2] == ["cannot open /dev/kvm: No such file or directory", "load the module"]
    assert "nested virtualization" in words[2]
    closed = facts(
        error="cannot open /dev/kvm: Permission denied",
        hint="",
        device={"path": "/dev/kvm", "exists": True, "usable": False, "mode": "crw-------"},
    )
    assert "chmod 660" in advice(closed)[1]
    old = facts()
    old["capabilities"]["KVM_CAP_SYNC_REGS"] = 0
    assert "lacks KVM_CAP_SYNC_REGS" in advice(old)[0]
    slow = facts()
    slow["capabilities"]["KVM_CAP_COALESCED_PIO"] = 0
    assert advice(slow)[0].startswith("no KVM_CAP_COALESCED_PIO: ")


def test_text() -> None:
    text = info_text(facts(advice=["do this"]))
    assert "  KVM module       kvm_intel\n" in text
    assert "  /dev/kvm         crw-rw---- root:kvm, this user may open it\n" in text
    assert "What to do\n  do this\n" in text
    assert "  a guest runs                       yes\n" in text
    assert "  x86-64-v1        yes\n  x86-64-v2        no: it does not offer cx16, popcnt\n" in text
    assert "  syscall            it stays\n                     workaround: so\n" in text
    assert "  bit-counts         they lie\n                     no workaround\n" in text
    assert [cap.name for cap in Cap if f"  {cap.name} " not in text] == []
    bare = facts(
        error="no", modules={}, probes=[], models={}, quirks=[],
        device={"path": "/dev/kvm", "exists": False, "usable": False, "error": "not there"},
    )  # fmt: skip
    del bare["capabilities"]
    assert "  /dev/kvm         not there\n" in info_text(bare)


def test_a_probe_that_fails_is_a_no() -> None:
    def fails() -> Verdict:
        raise HostError("no KVM here")

    assert Probe("question", fails)() == Verdict(False, "no KVM here")


@pytest.mark.kvm
@pytest.mark.parametrize("probe", PROBES[:3], ids=lambda probe: probe.name)
def test_probes_that_every_host_passes(probe: Probe) -> None:
    assert probe() == Verdict(True)


@pytest.mark.needs_host(INT_N_ERROR)
def test_quirks_agree_with_what_a_bare_guest_meets(pykvm: Pykvm, guests: Path) -> None:
    found = {quirk["quirk"] for quirk in json.loads(pykvm("info", "--json").stdout)["quirks"]}
    for quirk, guest, code in (("syscall", "syscall.elf", 3), ("int-n", "int80.elf", 1)):
        done = pykvm(guests / guest, "--quirks", "off", "--timeout", "20")
        assert done.returncode == (code if quirk in found else 0), done.stdout


@pytest.mark.kvm
def test_command(pykvm: Pykvm) -> None:
    done = pykvm("info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "API version      12" in done.stdout
    done = pykvm("info", "--json")
    found = json.loads(done.stdout)
    assert found["usable"]
    assert found["api_version"] == 12
    assert found["capabilities"]["KVM_CAP_USER_MEMORY"] == 1
    assert [probe["works"] for probe in found["probes"]][:3] == [True, True, True]


@pytest.mark.kvm
def test_its_reader_may_leave(command: list[str], environment: dict[str, str]) -> None:
    line = " ".join([*command, "info", "|", "head", "-1"])
    done = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("This host\n", "")
