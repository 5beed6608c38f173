from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulate.rig import Rig, make_rig


@pytest.fixture(scope="module")
def rig(kvm: None) -> Iterator[Rig]:
    with make_rig() as made:
        yield made
