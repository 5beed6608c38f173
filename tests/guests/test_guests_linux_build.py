"""How the Linux for tests is built and kept: guests/linux."""

from __future__ import annotations

import fcntl
import io
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import artifacts
import build
import initramfs
from artifacts import Artifact, Build, BuildError

DEADLINE = 20.0

FILES = (
    initramfs.Entry("etc", stat.S_IFDIR | 0o755),
    initramfs.Entry("etc/odd", stat.S_IFREG | 0o640, b"12345"),
    initramfs.Entry("link", stat.S_IFLNK | 0o777, b"etc/odd"),
    initramfs.Entry("console", stat.S_IFCHR | 0o600, device=(5, 1)),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def artifact(*commands: tuple[str, ...], name: str = "thing-1") -> Artifact:
    """Something that these commands make, in the directory where results go."""

    def make(build: Build) -> None:
        for command in commands:
            build.run(*command)
            shutil.copytree(build.tree, build.result, dirs_exist_ok=True)

    return Artifact("a thing", name, ("file",), 0, make)


MAKES = artifact(("sh", "-c", "echo made > file"))
FAILS = artifact(("sh", "-c", "echo begun > file"), ("sh", "-c", "echo no luck; exit 3"))


def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("busybox, which reads cpio archives, is missing")
    archive = initramfs.archive(list(FILES))
    listed = subprocess.run(
        ["busybox", "cpio", "-tv"], input=archive, capture_output=True, check=True, cwd=tmp_path
    )
    fields = [line.split() for line in listed.stdout.decode().splitlines()]
    assert [(field[0], *field[-1:]) for field in fields] == [
        ("drwxr-xr-x", "etc"),
        ("-rw-r-----", "etc/odd"),
        ("lrwxrwxrwx", "etc/odd"),
        ("crw-------", "console"),
    ]
    assert fields[1][2] == "5"


def test_a_member_byte_by_byte() -> None:
    assert initramfs.archive(
        [FILES[1]]
    ).startswith(
        b"070701"
        b"00000001" + b"000081A0" + b"00000000" * 2 + b"00000001" + b"00000000"  # inode to mtime
        b"00000005" + b"00000000" * 4 + b"00000008" + b"00000000"  # size to checksum
        b"etc/odd\0" + bytes(2) + b"12345" + bytes(3) + b"070701"
    )
    console = initramfs.archive([FILES[3]])
    assert console[6:].startswith(b"00000001" + b"00002180")
    assert console[6 + 9 * 8 : 6 + 11 * 8] == b"00000005" + b"00000001"


def test_the_archive_is_the_same_every_time() -> None:
    entries = initramfs.entries(b"busybox", {"b": b"2", "a": b"1"})
    assert initramfs.archive(entries) == initramfs.archive(
        initramfs.entries(b"busybox", {"a": b"1", "b": b"2"})
    )


def test_what_is_built_is_kept(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not MAKES.is_there
    MAKES.build()
    assert capsys.readouterr().err == "building a thing\n"
    assert (MAKES.directory / "file").read_text() == "made\n"
    MAKES.build()
    assert capsys.readouterr().err == ""
    assert {path.name for path in cache.iterdir()} == {"thing-1", "lock"}


def test_a_failure_leaves_its_log_and_nothing_else(cache: Path) -> None:
    with pytest.raises(BuildError, match=r"(?s)no luck\nthis failed; the whole log is .*thing-1"):
        FAILS.build()
    assert not FAILS.is_there
    assert {path.name for path in cache.iterdir()} == {"thing-1.log", "lock"}
    MAKES.build()
    assert {path.name for path in cache.iterdir()} == {"thing-1", "lock"}


def test_what_a_killed_build_left_is_removed(cache: Path) -> None:
    (cache / "build-killed" / "tree").mkdir(parents=True)
    MAKES.build()
    assert {path.name for path in cache.iterdir()} == {"thing-1", "lock"}


def test_two_at_once_build_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not capsys: to read it while another thread prints can lose what is printed.
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    waiting = "waiting for another build to end\n"
    cache.mkdir()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=MAKES.build)
        second.start()
        deadline = time.monotonic() + DEADLINE
        while said.getvalue() != waiting:
            assert time.monotonic() < deadline, "the second neither waits nor builds"
            time.sleep(0.001)
        MAKES.directory.mkdir()
    second.join(DEADLINE)
    assert not second.is_alive()
    assert said.getvalue() == waiting


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYKVM_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/pykvm"),
        ({"HOME": "/h"}, "/h/.cache/pykvm"),
    ],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("PYKVM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert artifacts.cache() == Path(expected)


def test_names_follow_from_what_goes_in() -> None:
    assert artifacts.digest("ab", "c") != artifacts.digest("a", "bc")
    assert artifacts.digest("ab") == artifacts.digest(b"ab")


def test_a_configuration_that_did_not_take_effect() -> None:
    built = build.CONFIG.read_text()
    build.check_configuration(built)
    with pytest.raises(BuildError, match="CONFIG_SMP=y has no effect"):
        build.check_configuration(built.replace("CONFIG_SMP=y", "# CONFIG_SMP is not set"))
    with pytest.raises(BuildError, match="CONFIG_X86_16BIT cannot be off"):
        build.check_configuration(built + "CONFIG_X86_16BIT=y\n")


def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(build.HERE / "build.py"), *options]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_missing_packages_are_named(tmp_path: Path) -> None:
    """With nothing on PATH, every program is missing."""
    done = run("--find", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "needs: apt-get install bc binutils bison flex gcc " in done.stderr
    assert run("--optional", PATH=str(tmp_path)).returncode == 0
    assert "bison" in run("--packages", PATH=str(tmp_path)).stdout.split()


def test_what_is_not_built_names_the_command(tmp_path: Path) -> None:
    if missing := build.missing_packages():
        pytest.skip(f"it could not be built either: {' '.join(missing)} missing")
    done = run("--find", PATH="/usr/sbin:/usr/bin:/sbin:/bin", PYKVM_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("is not built yet: make guest-linux\n")
    assert list(tmp_path.iterdir()) == []
