"""A system, a VM and a real-mode guest to call ioctls on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvm.guest import Guest

from pykvm.kvm import System
from pykvm.kvm.vm import VM


@pytest.fixture
def system(kvm: None) -> Iterator[System]:
    with System() as system:
        yield system


@pytest.fixture
def vm(system: System) -> Iterator[VM]:
    with system.create_vm() as vm:
        yield vm


@pytest.fixture
def chipped(system: System) -> Iterator[VM]:
    """A VM with an in-kernel irqchip."""
    with system.create_vm() as vm:
        vm.create_irqchip()
        yield vm


@pytest.fixture
def guest(vm: VM) -> Iterator[Guest]:
    with Guest(vm) as guest:
        yield guest
