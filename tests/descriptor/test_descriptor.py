"""Descriptors belong to an object from the moment that they exist."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from pykvm._core import ffi, lib, owned
from pykvm.descriptor import Descriptor


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


OPENERS: dict[str, Callable[[], Descriptor]] = {
    "open": lambda: Descriptor.open(os.devnull, os.O_RDONLY),
    "memfd": lambda: Descriptor.memfd("test", 0),
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_it_is_open_until_it_is_closed(opener: Callable[[], Descriptor]) -> None:
    with opener() as descriptor:
        fd = descriptor.fileno()
        assert is_open(fd)
        assert not os.get_inheritable(fd)
        assert repr(descriptor) == f"<Descriptor {fd}>"
    assert descriptor.closed
    assert not is_open(fd)
    with pytest.raises(ValueError, match="closed"):
        descriptor.fileno()


def test_closing_twice_leaves_a_reused_number_alone() -> None:
    descriptor = Descriptor.open(os.devnull, os.O_RDONLY)
    descriptor.close()
    with Descriptor.open(os.devnull, os.O_RDONLY) as reused:
        descriptor.close()
        assert is_open(reused.fileno())


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_it_is_closed_with_the_last_reference(opener: Callable[[], Descriptor]) -> None:
    descriptor = opener()
    fd = descriptor.fileno()
    gc.disable()
    try:
        del descriptor
        assert not is_open(fd)
    finally:
        gc.enable()


def test_refused() -> None:
    with pytest.raises(FileNotFoundError):
        Descriptor.open("/nowhere/at/all", os.O_RDONLY)
    with pytest.raises(ValueError, match="null byte"):
        Descriptor.open("/dev/null\0", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Descriptor.ioctl(1 << 20, 0xAE01, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Descriptor.kvm_device(1 << 20, 0)


def test_a_path_in_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe")
    path.write_bytes(b"x")
    with Descriptor.open(path, os.O_RDONLY) as file:
        assert os.read(file.fileno(), 2) == b"x"


def test_a_signal_interrupts_nothing_unless_its_handler_raises(tmp_path: Path) -> None:
    """The open of a FIFO waits for its other end, which the second signal brings."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    seen = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 2:
            writer.start()

    writer = threading.Thread(target=lambda: os.close(os.open(fifo, os.O_WRONLY)))
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with Descriptor.open(fifo, os.O_RDONLY) as reader:
            assert os.read(reader.fileno(), 1) == b""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        writer.join()
    assert len(seen) >= 2


def test_what_c_has_made_is_owned() -> None:
    freed = []

    def free(pointer: object) -> None:
        freed.append(pointer)
        lib.pykvm_claim_free(pointer)

    claim = owned(lib.pykvm_claim_new, free)
    gone = weakref.ref(claim)
    assert claim.turn == 0
    assert not freed
    del claim
    assert gone() is None
    assert len(freed) == 1


def test_what_c_could_not_make_is_null() -> None:
    assert owned(lambda: ffi.NULL, lib.pykvm_claim_free) == ffi.NULL
