"""The loop in C, without a guest: what it makes of a KVM_RUN that fails."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from pykvm._core import ffi, lib

IO = 2


class Fake(NamedTuple):
    """A vCPU whose descriptor is no vCPU, and its kvm_run page."""

    core: Any
    page: bytearray


@pytest.fixture
def fake() -> Iterator[Fake]:
    page = bytearray(3 * 4096)
    fd = os.open(os.devnull, os.O_RDWR)
    handle = ffi.from_buffer(page)
    core = ffi.gc(lib.pykvm_vcpu_new(fd, handle, ffi.NULL, 0), lib.pykvm_vcpu_free)
    yield Fake(core, page)
    ffi.release(core)
    ffi.release(handle)
    os.close(fd)


def test_a_failed_run_is_an_error_and_not_the_exit_before_it(fake: Fake) -> None:
    """KVM_RUN that fails leaves the exit reason of the time before."""
    struct.pack_into("<I", fake.page, 8, IO)

    assert lib.pykvm_run(fake.core) == lib.PYKVM_ERROR
    assert fake.core.error == errno.ENOTTY
    assert sum(ffi.unpack(fake.core.exits, lib.PYKVM_COUNTERS)) == 0


def test_a_vcpu_that_is_none_cannot_be_entered(fake: Fake) -> None:
    assert lib.pykvm_enter(fake.core, 0, 0) == lib.PYKVM_NO_MASK
    assert fake.core.error == errno.ENOTTY
    # Nothing of the attempt is left: the thread's mask, the owner.
    assert lib.pykvm_kick(fake.core, 0) == 0
    assert lib.pykvm_kick_signal() not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_completing_fails_with_the_errno_of_the_ioctl(fake: Fake) -> None:
    assert lib.pykvm_complete(fake.core) == -errno.ENOTTY
    assert fake.page[1] == 0, "immediate_exit is taken back"


def test_a_kick_without_a_run_answers_zero(fake: Fake) -> None:
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(lib.pykvm_kick(fake.core, 0)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [0, 0, 0, 0]


def test_the_kick_signal_is_a_real_time_signal_with_a_handler() -> None:
    number = lib.pykvm_kick_signal()

    assert 34 < number <= 64
    assert lib.pykvm_kick_signal() == number
    os.kill(os.getpid(), number)
