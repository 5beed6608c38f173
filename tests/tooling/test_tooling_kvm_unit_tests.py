"""The runner of kvm-unit-tests, without them: what it reads, runs and makes of the output."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvm_unit_tests.__main__ import main
from kvm_unit_tests.entries import Entry, read_entries
from kvm_unit_tests.hypervisors import Verdict, judge, pykvm_command, qemu_command, run

CONFIGURATION = """
# a comment = no field
[x2apic]
file = apic.flat
smp = 2
qemu_params = -cpu qemu64,+x2apic,+tsc-deadline
arch = x86_64
timeout = 30
groups = apic

[cmpxchg8b]
file = cmpxchg8b.flat
arch = i386

[vmexit_ipi]
file = vmexit.flat
test_args = 'ipi'
qemu_params = -machine pit=off -m 2048

[iommu]
file = iommu.flat
qemu_params = -M q35 -device intel-iommu,eim=off -device edu

[vmx]
file = vmx.flat
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "unittests.cfg").write_text(CONFIGURATION)
    return tmp_path


@pytest.fixture
def entries(tree: Path) -> dict[str, Entry]:
    return {entry.name: entry for entry in read_entries(tree)}


def test_entries(tree: Path, entries: dict[str, Entry]) -> None:
    """Those of i386 and of nested virtualization are left out."""
    assert list(entries) == ["x2apic", "vmexit_ipi", "iommu"]
    x2apic = entries["x2apic"]
    assert x2apic.file == tree / "x86" / "apic.flat"
    assert (x2apic.vcpus, x2apic.model, x2apic.features) == (
        2,
        "qemu64",
        ("+x2apic", "+tsc-deadline"),
    )
    ipi = entries["vmexit_ipi"]
    assert (ipi.arguments, ipi.memory, ipi.options) == ("ipi", "2048", ("-machine", "pit=off"))
    assert (ipi.device, entries["iommu"].device) == ("", "intel-iommu")


def test_command_of_pykvm(entries: dict[str, Entry]) -> None:
    """Features have Linux's names; those that the host does not offer are left out."""
    command = pykvm_command(entries["x2apic"], offers=lambda name: name != "x2apic")
    assert command[1:3] == ["-m", "pykvm"]
    assert command[command.index("--cpu") + 1] == "baseline,+tsc_deadline_timer"
    assert command[command.index("--smp") + 1] == "2"
    command = pykvm_command(entries["vmexit_ipi"], offers=lambda name: True)
    assert command[command.index("-m", 3) + 1] == "2048M"
    assert command[-2:] == ["--append", "ipi"]


@pytest.mark.parametrize(
    ("cpu", "accel", "chosen", "model"),
    [
        ("", "kvm", "", "qemu64"),
        ("host,migratable=no", "kvm", "", "host,migratable=no"),
        ("host,migratable=no", "kvm", "qemu64,-cx16", "qemu64,-cx16"),
        ("host,migratable=no,+pku", "tcg", "", "max,+pku"),
        ("max,host-phys-bits", "tcg", "", "max"),
    ],
)
def test_processor_of_qemu(cpu: str, accel: str, chosen: str, model: str) -> None:
    command = qemu_command(Entry("a", Path("a.flat"), cpu=cpu), accel=accel, cpu=chosen)
    assert command[command.index("-cpu") + 1] == model


@pytest.mark.parametrize(
    ("status", "text", "verdict"),
    [
        (1, "PASS: a\nSUMMARY: 3 tests\r\n", ("PASS", "3 tests")),
        (1, "cpuid 1234\n", ("PASS", "")),
        (3, "FAIL: a\nSUMMARY: 3 tests, 1 failed\n", ("FAIL", "3 tests, 1 failed")),
        (77, "no such feature\n", ("SKIP", "")),
        (None, "still at it\n", ("TIMEOUT", "")),
        (127, "Unhandled exception 13 #GP\nrax=0\n", ("CRASH", "Unhandled exception 13 #GP")),
        (125, "PASS: a\npykvm: the guest crashed: triple fault: b\n", ("CRASH", "triple fault: b")),
        (1, "qemu-system-x86_64: no such property\n", ("CRASH", "no such property")),
        (1, "", ("CRASH", "status 1")),
    ],
)  # fmt: skip
def test_verdict(status: int | None, text: str, verdict: tuple[str, str]) -> None:
    assert judge(status, text, 1.0)[:2] == verdict


def test_a_run_has_an_end(tmp_path: Path) -> None:
    endless = ["sh", "-c", "echo begun; exec sleep 600"]
    for seconds in (0.2, 2.0, 20.0):
        verdict = run(endless, seconds, tmp_path)
        assert verdict.word == "TIMEOUT"
        if verdict.output:  # on a busy host it may not have begun
            break
    assert verdict.output == "begun\n"


@pytest.mark.kvm
def test_a_tree_with_one_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has pykvm's verdict; what QEMU would say is not asked."""
    code = bytes.fromhex("66baf803 b041 ee 30c0 e6f4")  # print 'A', exit with code 0
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "one.flat").write_bytes(_multiboot(code))
    (tmp_path / "x86" / "unittests.cfg").write_text("[one]\nfile = one.flat\n")
    assert main([str(tmp_path), "--under", "pykvm", "--logs", str(tmp_path / "logs")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[:2] == ["| Test | pykvm |", "|---|---|"]
    assert table[2].startswith("| one | PASS, ")
    assert table[3] == "| 1 entries | 1 |"
    assert "A" in (tmp_path / "logs" / "one.pykvm").read_text()


def _multiboot(code: bytes) -> bytes:
    """A kernel that says by addresses that it goes to 1 MiB: its header, and `code` after it."""
    base, size = 0x10_0000, 32
    words = (
        0x1BADB002,
        1 << 16,
        -(0x1BADB002 + (1 << 16)) % (1 << 32),
        base,
        base,
        0,
        0,
        base + size,
    )
    return b"".join(word.to_bytes(4, "little") for word in words) + code


def test_no_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is no checkout of them" in capsys.readouterr().err


def test_a_cell() -> None:
    assert str(Verdict("PASS", "3 tests", 1.0, "")) == "PASS (3 tests)"
    assert str(Verdict("TIMEOUT", "", 1.0, "")) == "TIMEOUT"
