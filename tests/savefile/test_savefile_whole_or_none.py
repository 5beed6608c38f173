"""A file stands under its name whole, or not at all: whatever fails, and whenever."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from savefile.calls import Calls
from savefile.files import saved

from pykvm.descriptor import Descriptor
from pykvm.errors import ConfigError, HostError, ResourceError
from pykvm.savefile import SavedFile
from pykvm.savefile import new_file as module


@pytest.fixture(params=["nameless", "named"])
def nameless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without O_TMPFILE, which not every file system has."""
    if request.param == "named":
        opened = Descriptor.open

        def refuse(path: Any, flags: int, mode: int = 0) -> Descriptor:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return opened(path, flags, mode)

        monkeypatch.setattr(Descriptor, "open", refuse)
    return bool(request.param == "nameless")


@pytest.mark.usefixtures("nameless")
def test_it_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pykvm"
    first = saved(path)
    with SavedFile(path) as old, old.map("memory.0") as mapped:
        before = mapped[:]
        assert saved(path) == first
        # What is mapped is the old file still.
        assert path.stat().st_ino != os.fstat(old.fileno()).st_ino
        assert mapped[:] == before
    assert os.listdir(tmp_path) == ["a.pykvm"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("nameless")
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, HostError, "No space left on device"),
        (errno.EIO, HostError, "Input/output error"),
        (errno.ENOMEM, ResourceError, "Cannot allocate memory"),
        (errno.EMFILE, ResourceError, "Too many open files"),
    ],
)
def test_any_step_may_fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exists: bool,
    number: int,
    kind: type[HostError],
    words: str,
) -> None:
    path = tmp_path / "a.pykvm"

    def start(fails: int | None) -> Calls:
        path.unlink(missing_ok=True)
        if exists:
            path.write_bytes(b"old")
        calls = Calls(fails, number)
        monkeypatch.setattr(module, "os", calls)
        return calls

    saved(path)
    names = (count := start(None)).names
    saved(path)
    assert names.count("fsync") == 2
    for step, name in enumerate(names):
        calls = start(step)
        with pytest.raises(kind, match=f"a.pykvm: cannot be saved: {words}") as failed:
            saved(path)
        assert calls.names[-1] == name
        assert (failed.value.hint != "") == (number != errno.EIO)
        # Once it is renamed it is there, and only the folder was not written.
        left = os.listdir(tmp_path)
        if step < len(names) - 1:
            assert left == ["a.pykvm"] * exists
            assert not exists or path.read_bytes() == b"old"
        else:
            assert left == ["a.pykvm"]
    assert count.names is names


@pytest.mark.usefixtures("nameless")
def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be saved: No such file"):
        saved(tmp_path / "nowhere" / "a.pykvm")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="cannot be saved: Not a directory"):
        saved(tmp_path / "file" / "a.pykvm")
    with pytest.raises(HostError, match="cannot be saved: File name too long"):
        saved(tmp_path / ("a" * 300))


def test_devices_and_folders_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        before = path.stat()
        with pytest.raises(ConfigError, match="no regular file"):
            saved(path)
        assert path.stat().st_ino == before.st_ino
    for name in ("", "a/", "a\0b"):
        with pytest.raises(ConfigError, match="not the name of a file"):
            saved(name)  # type: ignore[arg-type]


@pytest.mark.usefixtures("nameless")
def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/a.pykvm")
    saved(tmp_path / "link")
    saved(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "folder") == ["a.pykvm"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pykvm.savefile import new_file
from savefile.files import saved
from savefile.calls import Calls

class Killing(Calls):
    def _counted(self, name, real):
        def call(*arguments, **options):
            if len(self.names) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(name)
            return real(*arguments, **options)
        return call

path = Path(sys.argv[1])
for step in range(100):
    path.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        new_file.os = Killing()
        saved(path)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(ended, *os.listdir(path.parent))
    if ended == 0:
        break
"""


def test_killed_at_any_step(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "a.pykvm"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{root}/tests"},
    )
    *killed, last, whole = done.stdout.splitlines()
    assert len(killed) > 10
    assert set(killed) == {f"{-signal.SIGKILL}"}
    # Its folder is still to be written, but the file is there.
    assert (last, whole) == (f"{-signal.SIGKILL} a.pykvm", "0 a.pykvm")
    with SavedFile(path) as file:
        file.verify()


class Boom(Exception):
    """What a signal's handler raises."""


@pytest.mark.usefixtures("nameless")
def test_an_exception_at_any_line(tmp_path: Path) -> None:
    """Ctrl-C leaves neither a file nor a descriptor."""
    path = tmp_path / "a.pykvm"
    path.write_bytes(b"old")
    before = len(os.listdir("/proc/self/fd"))
    lines = 0

    def tracer(stop: int | None) -> Callable[..., Any]:
        def trace(frame: Any, event: str, argument: object) -> Any:
            nonlocal lines
            code = frame.f_code
            # What cleans up is not to be interrupted twice.
            if "/savefile/" not in code.co_filename or code.co_name in ("_close", "__exit__"):
                return None
            if event == "line":
                if lines == stop:
                    lines += 1
                    raise Boom
                lines += 1
            return trace

        return trace

    def run(stop: int | None) -> bool:
        nonlocal lines
        lines = 0
        sys.settrace(tracer(stop))
        try:
            saved(path)
        except Boom:
            return False
        finally:
            sys.settrace(None)
        return True

    assert run(None)
    for stop in range(0, lines, 7):
        path.write_bytes(b"old")
        assert not run(stop)
        assert os.listdir(tmp_path) == ["a.pykvm"]
        assert len(os.listdir("/proc/self/fd")) == before
