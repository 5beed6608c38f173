"""Tests on emulated hosts: what goes there and what comes back.  No emulator is started here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_tests

import emulators
import image
import tree
from artifacts import BuildError
from emulators import EMULATORS, Host
from selections import SELECTIONS, SHORT


def module(path: Path, depends: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF\0license=GPL\0depends=%s\0retpoline=Y\0" % depends.encode())


def test_modules_come_after_those_that_they_depend_on(tmp_path: Path) -> None:
    module(tmp_path / "kvm/kvm-amd.ko", "kvm,ccp")
    module(tmp_path / "kvm/kvm.ko", "irqbypass")
    module(tmp_path / "lib/irqbypass.ko", "")
    module(tmp_path / "block/virtio_blk.ko", "virtio")
    module(tmp_path / "virtio.ko", "built_into_the_kernel")
    module(tmp_path / "unused.ko", "")
    names = [path.stem for path in image.in_order(tmp_path)]
    assert names == ["virtio", "virtio_blk", "irqbypass", "kvm", "kvm-amd"]


def test_images_that_nothing_uses_go(tmp_path: Path) -> None:
    for name, age in (("host-old", 8), ("host-new", 1), ("initramfs-old", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "root.img").touch()
        used = time.time() - age * 24 * 3600
        os.utime(tmp_path / name / "root.img", (used, used))
    (tmp_path / "host-new.log").touch()
    image.forget_old_ones(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"host-new", "host-new.log", "initramfs-old"}


def test_the_tree_has_what_tests_need(guests: Path) -> None:
    names = set(tree.files())
    assert {"pyproject.toml", "tests/conftest.py", "guests/build/hello.elf"} <= names
    assert any(name.startswith("pykvm/_core/_native") for name in names)
    assert not any(name.startswith((".venv", "guests/build/linux/")) for name in names)


@pytest.mark.parametrize("words", [SELECTIONS["amd"], SELECTIONS["intel"], SHORT])
def test_selections_name_tests_that_exist(words: list[str], root: Path) -> None:
    named = [word.partition("::") for word in words if word.startswith("tests/")]
    assert named
    for file, _, test in named:
        assert (root / file).exists(), file
        name = test.partition("[")[0].rpartition("::")[2]
        assert not test or f"def {name}(" in (root / file).read_text(), test


def told(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["run_tests.py", *words])
    return run_tests.arguments(run_tests.parse())


def test_what_pytest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, "amd") == SELECTIONS["amd"]
    assert told(monkeypatch, "amd", "--short") == SHORT
    assert told(monkeypatch, "amd", "--short", "--", "-q") == [*SHORT, "-q"]
    assert told(monkeypatch, "intel", "--", "-k", "kick") == [*SELECTIONS["intel"], "-k", "kick"]
    other = ["tests/vcpu/test_core.py::test_it", "-x"]
    assert told(monkeypatch, "amd", "--", *other) == other


def test_a_time_limit_is_a_number_of_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "amd", "--minutes", "240", "--", "-x"])
    assert run_tests.parse().minutes == 240
    for word in ("0", "-1", "inf", "nan", "long"):
        monkeypatch.setattr(sys, "argv", ["run_tests.py", "amd", "--minutes", word])
        with pytest.raises(SystemExit):
            run_tests.parse()
        assert f"invalid time_limit value: '{word}'" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "status"), [([], 1), (["--optional"], 0)])
def test_without_an_emulator(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
) -> None:
    monkeypatch.setattr(emulators, "which", lambda tool: None)
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "amd", *options])
    assert run_tests.main() == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no tests on kvm_amd in QEMU's emulation of SVM: it needs: apt-get")


def host(directory: Path, report: bytes) -> Host:
    (directory / "report").write_bytes(report)
    names = ("vmlinuz", "initramfs.cpio", "root.img", "tree.img", "console", "report")
    kernel, initramfs, system, tree, console, serial = (directory / name for name in names)
    return Host(kernel, initramfs, system, tree, console, serial)


@pytest.fixture
def ended() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["true"])
    process.wait()
    return process


def test_the_status_is_that_of_pytest(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], ended: subprocess.Popen[bytes]
) -> None:
    said = b"1 failed, 2 passed\nemulated host: status 1\n"
    assert run_tests.follow(ended, host(tmp_path, said), 10) == 1
    assert capfdbinary.readouterr().out == b"1 failed, 2 passed\n"


def test_a_host_that_ends_early(tmp_path: Path, ended: subprocess.Popen[bytes]) -> None:
    with pytest.raises(BuildError, match="ended before its tests did: see .*console"):
        run_tests.follow(ended, host(tmp_path, b"....F"), 10)


def test_a_host_that_hangs(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(BuildError, match="not done after 0 minutes"):
            run_tests.follow(process, host(tmp_path, b"...."), 0)
    finally:
        process.kill()
        process.wait()


def test_each_emulator_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulators, "which", lambda tool: None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert EMULATORS["amd"].missing() == ["qemu-system-x86"]
    assert {"bochs", "bochsbios", "grub-pc-bin", "xorriso"} <= set(EMULATORS["intel"].missing())
