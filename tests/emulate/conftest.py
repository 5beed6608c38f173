from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulate.fake_vcpu import Bench
from emulate.rig import Rig, make_rig
from pykvm.errors import KVMError
from support.host import host_probe, require_host

AVX_STATE = "guests-have-avx-state"


@host_probe(AVX_STATE)
def guests_have_avx_state() -> str | None:
    """Whether a vCPU takes an XCR0 with x87, SSE and AVX, as the rig's has."""
    try:
        with make_rig():
            return None
    except KVMError as error:
        return str(error).splitlines()[0]


@pytest.fixture(scope="module")
def rig(kvm: None) -> Iterator[Rig]:
    require_host(AVX_STATE)
    with make_rig() as made:
        yield made


@pytest.fixture
def bench() -> Iterator[Bench]:
    """The emulator over a vCPU that is none of KVM's."""
    made = Bench()
    yield made
    made.close()
