"""Opening, closing and failing, as far as it goes without KVM."""

from __future__ import annotations

import errno
import os
import re
import threading
import warnings
from pathlib import Path

import pytest

from pykvm.descriptor import Descriptor
from pykvm.errors import ClosedError, ConfigError, HostError, KVMError
from pykvm.kvm import System, uapi
from pykvm.kvm.handle import Handle, address_of, bytes_of, fd_of, name_of
from pykvm.kvm.hints import HINTS, NEEDS, hint_for
from support.resources import descriptors


@pytest.fixture
def handle() -> Handle:
    return Handle(Descriptor.open(os.devnull, os.O_RDWR), "thing")


def test_with_closes(handle: Handle) -> None:
    fd = handle.fd
    with handle as entered:
        assert entered is handle
        assert handle.fileno() == fd
        assert repr(handle) == f"<pykvm.kvm.Handle fd {fd}>"
    assert handle.closed
    assert repr(handle) == "<pykvm.kvm.Handle closed>"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_closing_twice_leaves_a_reused_descriptor_alone(handle: Handle) -> None:
    handle.close()
    reused = os.open(os.devnull, os.O_RDONLY)
    handle.close()
    os.close(reused)


def test_what_is_closed_is_refused(handle: Handle) -> None:
    handle.close()
    with pytest.raises(ClosedError, match="this thing is closed"):
        _ = handle.fd
    with pytest.raises(ClosedError):
        handle.ioctl(uapi.KVM_RUN)
    with pytest.raises(ClosedError):
        handle.__enter__()


@pytest.mark.parametrize("warns", [True, False])
def test_forgetting_to_close_closes(warns: bool) -> None:
    handle = Handle(Descriptor.open(os.devnull, os.O_RDWR), "thing", warns=warns)
    fd = handle.fd
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del handle
    assert [str(each.message) for each in caught] == [
        f"<pykvm.kvm.Handle fd {fd}> was never closed"
    ] * warns
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_many_threads_close_once() -> None:
    """A second close would take away what another thread has opened meanwhile."""

    def close_and_open() -> None:
        start.wait()
        handle.close()
        opened.append(os.open(os.devnull, os.O_RDONLY))

    for _ in range(50):
        handle = Handle(Descriptor.open(os.devnull, os.O_RDWR), "thing")
        opened: list[int] = []
        start = threading.Barrier(8)
        threads = [threading.Thread(target=close_and_open) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for fd in opened:
            os.close(fd)


def test_an_error_names_the_ioctl_and_what_to_do(handle: Handle) -> None:
    with handle, pytest.raises(KVMError) as caught:
        handle.ioctl(uapi.KVM_GET_SREGS2, bytearray(320))
    error = caught.value
    assert (error.ioctl, error.errno) == ("KVM_GET_SREGS2", errno.ENOTTY)
    assert str(error).endswith("(ENOTTY)\nneeds KVM_CAP_SREGS2: ask check_extension")
    assert isinstance(error, OSError)
    assert error.__cause__ is None


def test_words_of_64_bits_reach_the_kernel(handle: Handle) -> None:
    with handle:
        for word in (0, 2**31 - 1, 2**31, 2**64 - 1):
            with pytest.raises(KVMError, match="KVM_SET_TSS_ADDR"):
                handle.ioctl_word(uapi.KVM_SET_TSS_ADDR, word)
        for word in (-1, 2**64):
            with pytest.raises(ConfigError, match="KVM_SET_TSS_ADDR: .* no unsigned 64-bit"):
                handle.ioctl_word(uapi.KVM_SET_TSS_ADDR, word)


class Full(Handle):
    """Answers E2BIG until there is room for 300 elements, and says so if `says`."""

    says = True

    def ioctl(self, number: int, arg: int | bytearray | memoryview = 0) -> int:
        assert isinstance(arg, bytearray)
        self.asked.append(uapi.kvm_msr_list.count_in(arg))
        if self.asked[-1] >= 300:
            arg[:4] = (300).to_bytes(4, "little")
            return 0
        if self.says:
            arg[:4] = (300).to_bytes(4, "little")
        raise KVMError("KVM_GET_MSR_INDEX_LIST", errno.E2BIG)

    asked: list[int]


@pytest.mark.parametrize(("says", "asked"), [(True, [100, 300]), (False, [100, 200, 400])])
def test_lists_are_asked_for_until_they_fit(says: bool, asked: list[int]) -> None:
    with Full(Descriptor.open(os.devnull, os.O_RDWR), "thing") as full:
        full.says, full.asked = says, []
        buffer = full.ioctl_growing(uapi.KVM_GET_MSR_INDEX_LIST, uapi.kvm_msr_list, 100)
        assert full.asked == asked
    assert len(uapi.kvm_msr_list.unpack(buffer).indices) == 300


def test_a_list_that_never_fits_is_an_error() -> None:
    class Never(Handle):
        def ioctl(self, number: int, arg: int | bytearray | memoryview = 0) -> int:
            raise KVMError("KVM_GET_MSR_INDEX_LIST", errno.E2BIG)

    with Never(Descriptor.open(os.devnull, os.O_RDWR), "thing") as never, pytest.raises(KVMError):
        never.ioctl_growing(uapi.KVM_GET_MSR_INDEX_LIST, uapi.kvm_msr_list, 1)


def test_every_ioctl_has_its_name() -> None:
    assert name_of(uapi.KVM_SET_DEBUGREGS) == "KVM_SET_DEBUGREGS"
    assert name_of(uapi.KVM_SET_TSC_KHZ) == "KVM_SET_TSC_KHZ"
    assert name_of(0x1234) == "ioctl 0x1234"


def test_hints_are_about_ioctls_and_capabilities_that_exist() -> None:
    from pykvm.kvm import Cap

    ioctls = {*NEEDS, *(ioctl for ioctl, _ in HINTS)}
    assert [name for name in ioctls if not hasattr(uapi, name)] == []
    named = {cap for text in NEEDS.values() for cap in re.findall(r"KVM_CAP_\w+", text)}
    assert named <= set(Cap.__members__)


def test_hints() -> None:
    assert "overlaps" in hint_for("KVM_SET_USER_MEMORY_REGION", errno.EEXIST)
    assert "fork" in hint_for("KVM_RUN", errno.EIO)
    assert hint_for("KVM_RUN", errno.ENOTTY) == "this host's KVM does not have it"
    assert hint_for("KVM_RUN", errno.EINTR) == ""


def test_a_missing_device_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot open .*: No such file") as caught:
        System(str(tmp_path / "kvm"))
    for advice in ("modprobe kvm_intel", "firmware", "--device /dev/kvm"):
        assert advice in caught.value.hint


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_forbidden_device_says_how_to_get_at_it(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> Descriptor:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Descriptor, "open", refuse)
    with pytest.raises(HostError, match="cannot open /dev/kvm") as caught:
        System()
    assert "usermod -aG kvm" in caught.value.hint


def test_another_device_is_refused_and_closed() -> None:
    before = descriptors()
    with pytest.raises(HostError, match="/dev/null is not a KVM device"):
        System(os.devnull)
    assert descriptors() == before


def test_another_version_is_refused_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "api_version", lambda self: 13)
    before = descriptors()
    with pytest.raises(HostError, match="speaks version 13 of the KVM API, not 12"):
        System(os.devnull)
    assert descriptors() == before


def test_files_stand_for_their_descriptors() -> None:
    with open(os.devnull) as file:
        assert fd_of(file) == file.fileno()
    assert fd_of(7) == 7
    with pytest.raises(ConfigError, match="expected a file descriptor"):
        fd_of("7")


def test_integers_become_bytes() -> None:
    assert bytes_of(-1, 8) == b"\xff" * 8
    assert bytes_of(0x1234, 2) == b"\x34\x12"
    with pytest.raises(ConfigError, match="0x100 does not fit in 1 bytes"):
        bytes_of(256, 1)


def test_the_address_of_a_buffer_is_where_its_bytes_are() -> None:
    import ctypes

    buffer = bytearray(b"here")
    assert ctypes.string_at(address_of(buffer), 4) == b"here"
