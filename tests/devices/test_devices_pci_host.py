"""The host bridge, the empty slots around it, and the reset register in the middle of the ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import GuestReset
from pykvm.devices.pci_host import CONFIG_ADDRESS, CONFIG_DATA, PciHost

ENABLE = 1 << 31
PAM0 = 0x59


def select(host: PciHost, register: int, *, bus: int = 0, slot: int = 0, function: int = 0) -> None:
    address = ENABLE | bus << 16 | slot << 11 | function << 8 | register
    host.write(CONFIG_ADDRESS, 4, address)


@pytest.mark.parametrize(
    ("register", "size", "value"),
    [
        (0x00, 4, 0x1237_8086),
        (0x02, 2, 0x1237),
        (0x08, 4, 0x0600_0002),
        (0x0E, 1, 0),
        (0x2C, 4, 0x1100_1AF4),
        (0xFC, 4, 0),
    ],
)
def test_the_host_bridge_is_a_440fx_of_qemus(register: int, size: int, value: int) -> None:
    host = PciHost()
    select(host, register & 0xFC)
    assert host.read(CONFIG_DATA + register % 4, size) == value


@pytest.mark.parametrize("place", [{"bus": 1}, {"slot": 1}, {"slot": 31}, {"function": 1}])
def test_every_other_slot_is_empty(place: dict[str, int]) -> None:
    host = PciHost()
    select(host, 0, **place)
    host.write(CONFIG_DATA, 4, 0)
    assert [host.read(CONFIG_DATA, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]


def test_without_the_enable_bit_nothing_is_selected() -> None:
    host = PciHost()
    host.write(CONFIG_ADDRESS, 4, 0)
    assert host.read(CONFIG_DATA, 4) == 0xFFFFFFFF


def test_the_address_reads_back() -> None:
    host = PciHost()
    host.write(CONFIG_ADDRESS, 4, 0xFFFF_FFFF)
    assert host.read(CONFIG_ADDRESS, 4) == 0x80FF_FFFC


def test_only_what_shadows_memory_can_be_set() -> None:
    host = PciHost()
    select(host, PAM0 & 0xFC)
    assert host.read(CONFIG_DATA + 1, 1) == 0
    host.write(CONFIG_DATA, 4, 0x3333_3033)
    assert host.read(CONFIG_DATA, 4) == 0x3333_3000
    select(host, 0)
    host.write(CONFIG_DATA, 4, 0)
    assert host.read(CONFIG_DATA, 4) == 0x1237_8086


def test_a_byte_in_the_middle_resets_the_machine() -> None:
    host = PciHost()
    # As an address, its second byte means nothing to the reset register.
    host.write(CONFIG_ADDRESS, 4, ENABLE | 0x0600)
    host.write(1, 1, 0x02)
    assert host.read(1, 1) == 0x02
    with pytest.raises(GuestReset, match="0xcf9: warm"):
        host.write(1, 1, 0x06)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.sampled_from([1, 2, 4]),
            st.integers(0, 0xFFFF_FFFF),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_nothing_but_a_reset_comes_of_it(accesses: list[tuple[int, int, int, bool]]) -> None:
    host = PciHost()
    for offset, size, value, writes in accesses:
        size = min(size, 8 - offset if offset < 6 else 1)
        size = size if size in (1, 2, 4) else 1
        if writes:
            try:
                host.write(offset, size, value % (1 << 8 * size))
            except GuestReset:
                assert (offset, size) == (1, 1)
        else:
            assert 0 <= host.read(offset, size) < 1 << 8 * size
