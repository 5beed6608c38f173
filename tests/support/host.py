"""What this host can do, found out by asking it.

A test that needs KVM is marked `kvm` (or asks for the fixture `kvm`) and is skipped where there is
none.  A test that needs something which some hosts with KVM get wrong is marked with the probe that
finds out::

    @host_probe("syscall-enters-ring-0")
    def syscall_enters_ring_0() -> str | None:
        exits = run(SYSCALL_GUEST)
        return None if exits == [Hlt()] else "SYSCALL stays in ring 3"


    @pytest.mark.needs_host("syscall-enters-ring-0")
    def test_syscall(): ...

A fixture, or a test that finds out late that it needs it, calls `require_host` instead.

A probe runs a guest, or makes the call in question, and looks at what comes out: it never goes by
the name of a module, a CPU or a kernel.  It runs at most once in a session, and only if a test that
is about to run needs it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from fcntl import ioctl
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from _pytest.outcomes import Skipped
else:
    Skipped = pytest.skip.Exception

DEVICE = "/dev/kvm"
KVM_API_VERSION = 12
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01

REMEDY = {
    errno.ENOENT: "load kvm_intel or kvm_amd; inside a VM, give it nested virtualization; "
    "inside a container, pass the device in",
    errno.EACCES: "join the group that owns it (usermod -aG kvm NAME) and log in again",
    errno.EPERM: "let the container or sandbox use the device",
    errno.ENODEV: "load kvm_intel or kvm_amd",
    errno.ENXIO: "load kvm_intel or kvm_amd",
    errno.EBUSY: "stop the other hypervisor that holds the CPU's virtualization",
}

# Returns None if the host can, else a sentence that says what it does instead.
Probe = Callable[[], "str | None"]
AnyProbe = TypeVar("AnyProbe", bound=Probe)

probes: dict[str, Probe] = {}


class KVMMissing(Skipped):
    """Skips a test because the host has no KVM."""


class HostCannot(Skipped):
    """Skips a test because a named probe found that the host cannot do what the test needs."""

    def __init__(self, probe: str, reason: str) -> None:
        super().__init__(f"host probe {probe}: {reason}")
        self.probe = probe
        self.reason = reason


def explain(step: str, error: OSError) -> str:
    reason = f"tests that need KVM: {step}: {error.strerror}"
    remedy = REMEDY.get(error.errno or 0)
    return f"{reason} ({remedy})" if remedy else reason


@cache
def kvm_missing(device: str) -> str | None:
    """Why no VM can be made through `device`, with what to do about it, or None if one can."""
    step = f"opening {device}"
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return explain(step, error)
    try:
        step = f"KVM_GET_API_VERSION on {device}"
        version = ioctl(fd, KVM_GET_API_VERSION, 0)
        if version != KVM_API_VERSION:
            return f"tests that need KVM: {step}: {version} instead of {KVM_API_VERSION}"
        step = f"KVM_CREATE_VM on {device}"
        os.close(ioctl(fd, KVM_CREATE_VM, 0))
    except OSError as error:
        return explain(step, error)
    finally:
        os.close(fd)
    return None


def require_kvm() -> None:
    """Skip the running test if the host has no KVM."""
    reason = kvm_missing(DEVICE)
    if reason is not None:
        raise KVMMissing(reason)


def host_probe(name: str) -> Callable[[AnyProbe], AnyProbe]:
    """Register the decorated function as the probe `name`."""

    def register(probe: AnyProbe) -> AnyProbe:
        if name in probes:
            raise ValueError(f"two host probes are named {name}")
        probes[name] = probe
        return probe

    return register


@cache
def ask(name: str) -> str | None:
    """What the probe `name` says of this host: None if it can."""
    if name not in probes:
        raise LookupError(f"no host probe is named {name!r}; there are {sorted(probes)}")
    return probes[name]()


def require_host(name: str) -> None:
    """Skip the running test if the probe `name` says that the host cannot do what it needs."""
    reason = ask(name)
    if reason is not None:
        raise HostCannot(name, reason)
