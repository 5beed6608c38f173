"""Records and layouts: reading, editing, packing, and what is refused."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.kvm import uapi
from pykvm.kvm.codec import StructLayout
from pykvm.kvm.records import Overlay

u64 = st.integers(0, 2**64 - 1)
registers = st.fixed_dictionaries(dict.fromkeys(uapi.kvm_regs.names, u64))


@given(registers)
def test_registers_survive_packing(values: dict[str, int]) -> None:
    assert uapi.kvm_regs.unpack(uapi.kvm_regs.pack(values)).as_dict() == values


@given(st.binary(min_size=312, max_size=312))
def test_sregs_survive_unpacking(data: bytes) -> None:
    assert uapi.kvm_sregs.pack(uapi.kvm_sregs.unpack(data)) == data


@given(st.lists(st.fixed_dictionaries({"function": st.integers(0, 2**32 - 1)}), max_size=40))
def test_flexible_arrays_survive_packing(entries: list[dict[str, int]]) -> None:
    packed = uapi.kvm_cpuid2.pack({"entries": entries})
    assert len(packed) == 8 + 40 * len(entries)
    unpacked = uapi.kvm_cpuid2.unpack(packed)
    assert unpacked.nent == len(entries)
    assert [entry.function for entry in unpacked.entries] == [e["function"] for e in entries]


def test_fields_are_attributes() -> None:
    sregs = uapi.kvm_sregs.new()
    sregs.cs.selector = 8
    sregs.interrupt_bitmap[1] = 1
    data = uapi.kvm_sregs.pack(sregs)
    assert data[uapi.kvm_sregs.offset_of("cs.selector")] == 8
    assert data[uapi.kvm_sregs.offset_of("interrupt_bitmap[1]")] == 1
    assert data.count(0) == len(data) - 2


def test_a_mapping_may_leave_fields_out() -> None:
    packed = uapi.kvm_sregs.pack({"cr3": 0x1000, "cs": {"base": 0x20}})
    sregs = uapi.kvm_sregs.unpack(packed)
    assert (sregs.cr3, sregs.cs.base, sregs.cr0, sregs.ds.base) == (0x1000, 0x20, 0, 0)


def test_nothing_packs_to_zeros() -> None:
    assert uapi.kvm_regs.pack() == bytes(144)


def test_unpacking_at_an_offset() -> None:
    assert uapi.kvm_dtable.unpack(bytes(3) + b"\5" + bytes(15), 3).base == 5


def test_records_print_their_values_in_hex() -> None:
    assert repr(uapi.kvm_mp_state.new(mp_state=255)) == "kvm_mp_state(mp_state=0xff)"
    assert "regs=<1024 bytes>" in repr(uapi.kvm_lapic_state.new())
    assert "data=<01 00 00 00 00 00 00 00>" in repr(
        uapi.kvm_coalesced_mmio.new(data=b"\1" + bytes(7))
    )


def test_records_compare_by_value() -> None:
    one, other = uapi.kvm_regs.new(rax=1), uapi.kvm_regs.new(rax=1)
    assert one == other
    other.rbx = 2
    assert one != other
    assert one != one.as_dict()


def test_a_deep_copy_is_independent() -> None:
    one = uapi.kvm_sregs.new()
    other = copy.deepcopy(one)
    other.cs.base = 1
    assert one.cs.base == 0


def test_an_unknown_attribute_is_refused() -> None:
    regs = uapi.kvm_regs.new()
    with pytest.raises(AttributeError, match="kvm_regs has no field 'raxx'"):
        regs.raxx = 1
    with pytest.raises(AttributeError, match="kvm_regs has no field 'raxx'"):
        _ = regs.raxx
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del regs.rax


def test_an_unknown_field_names_the_struct_and_its_fields() -> None:
    with pytest.raises(ConfigError, match="kvm_mp_state has no field 'state'") as caught:
        uapi.kvm_mp_state.pack({"state": 1})
    assert "mp_state" in caught.value.hint


def test_a_value_that_does_not_fit_names_its_field() -> None:
    with pytest.raises(ConfigError, match=r"kvm_sregs\.gs\.limit: 0x100000000 is no unsigned 32"):
        uapi.kvm_sregs.pack({"gs": {"limit": 1 << 32}})
    with pytest.raises(ConfigError, match=r"kvm_regs\.rip: -0x1 is no unsigned 64-bit integer"):
        uapi.kvm_regs.pack({"rip": -1})
    with pytest.raises(ConfigError, match=r"kvm_regs\.rip: 'x' is no unsigned"):
        uapi.kvm_regs.pack({"rip": "x"})
    with pytest.raises(ConfigError, match=r"kvm_debugregs\.db\[2\]: None is no"):
        uapi.kvm_debugregs.pack({"db": [0, 0, None, 0]})


def test_arrays_keep_their_length() -> None:
    with pytest.raises(ConfigError, match=r"kvm_debugregs\.db: expected 4 elements, not \[0x1\]"):
        uapi.kvm_debugregs.pack({"db": [1]})
    with pytest.raises(ConfigError, match="expected 4 elements"):
        uapi.kvm_debugregs.pack({"db": 1})


def test_bytes_may_be_short_but_not_long() -> None:
    assert uapi.kvm_lapic_state.pack({"regs": b"\1"}) == b"\1" + bytes(1023)
    with pytest.raises(ConfigError, match=r"kvm_lapic_state\.regs: 1025 bytes do not fit in 1024"):
        uapi.kvm_lapic_state.pack({"regs": bytes(1025)})
    with pytest.raises(ConfigError, match="expected up to 1024 bytes, not 5"):
        uapi.kvm_lapic_state.pack({"regs": 5})


def test_only_records_and_mappings_are_taken() -> None:
    with pytest.raises(ConfigError, match="expected a kvm_regs record or a mapping, not int"):
        uapi.kvm_regs.pack(1)
    with pytest.raises(ConfigError, match="expected a kvm_regs record or a mapping, not kvm_sregs"):
        uapi.kvm_regs.pack(uapi.kvm_sregs.new())
    with pytest.raises(ConfigError, match=r"kvm_sregs\.cs: expected a kvm_segment record"):
        uapi.kvm_sregs.pack({"cs": 8})


def test_an_alias_is_another_name_for_the_same_bytes() -> None:
    level = uapi.kvm_irq_level.new(irq=2**32 - 1)
    assert level.status == -1
    level.status = 5
    assert level.irq == 5
    assert uapi.kvm_irq_level.pack({"status": -2, "level": 1}).hex() == "feffffff01000000"
    with pytest.raises(ConfigError, match=r"kvm_irq_level\.status"):
        level.status = 2**31


def test_a_union_is_read_as_each_of_its_members() -> None:
    entry = uapi.kvm_irq_routing_entry.new(u={"msi": {"address_lo": 1, "data": 3}})
    assert isinstance(entry.u, Overlay)
    assert entry.u.msi.data == 3
    assert entry.u.irqchip.as_dict() == {"irqchip": 1, "pin": 0}
    entry.u.irqchip.pin = 7
    assert entry.u.pad == [1, 7, 3, 0, 0, 0, 0, 0]
    entry.u.hv_sint = {"vcpu": 9}
    assert entry.u.pad == [9, 0, 0, 0, 0, 0, 0, 0]
    assert entry.as_dict()["u"] == {"pad": [9, 0, 0, 0, 0, 0, 0, 0]}
    assert copy.deepcopy(entry) == entry
    assert "irqchip | msi | hv_sint | pad" in repr(entry)


def test_changes_in_the_last_view_of_a_union_are_packed() -> None:
    chip = uapi.kvm_irqchip.new()
    chip.chip.pic.irr = 0x80
    assert uapi.kvm_irqchip.pack(chip)[8 + 1] == 0x80


def test_a_union_takes_one_member() -> None:
    with pytest.raises(ConfigError, match="exactly one of irqchip, msi"):
        uapi.kvm_irq_routing_entry.pack({"u": {"msi": {}, "irqchip": {}}})
    with pytest.raises(ConfigError, match="exactly one of"):
        uapi.kvm_irq_routing_entry.pack({"u": {"gsi": {}}})
    entry = uapi.kvm_irq_routing_entry.new()
    with pytest.raises(AttributeError, match="no member 'gsi'"):
        entry.u.gsi = 1
    with pytest.raises(AttributeError, match="no member 'gsi'"):
        _ = entry.u.gsi


def test_a_bit_field_has_its_width() -> None:
    with pytest.raises(ConfigError, match=r"mask: 0x2 does not fit in 1 bits"):
        uapi.kvm_ioapic_state.pack(
            {"redirtbl": [{"fields": {"mask": 2}}] + [{"bits": 0}] * 23},
        )


def test_a_signal_mask_counts_its_bytes() -> None:
    packed = uapi.kvm_signal_mask.pack({"sigset": bytes([1] * 8)})
    assert packed.hex(" ", 4) == "08000000 01010101 01010101"
    with pytest.raises(ConfigError, match=r"kvm_signal_mask\.sigset: expected bytes"):
        uapi.kvm_signal_mask.pack({"sigset": 8})


def test_the_counter_is_the_number_of_elements_whatever_was_given() -> None:
    assert uapi.kvm_msr_list.pack({"nmsrs": 77, "indices": [1]}).hex() == "0100000001000000"


def test_an_element_that_does_not_fit_names_its_index() -> None:
    with pytest.raises(ConfigError, match=r"kvm_msr_list\.indices\[1\]: 0x100000000 is no"):
        uapi.kvm_msr_list.pack({"indices": [0, 1 << 32]})
    with pytest.raises(ConfigError, match=r"kvm_msr_entry\.index"):
        uapi.kvm_msrs.pack({"entries": [{"index": -1}]})


def test_room_is_made_for_an_answer() -> None:
    room = uapi.kvm_cpuid2.room(3)
    assert len(room) == 8 + 3 * 40
    assert uapi.kvm_cpuid2.count_in(room) == 3
    with pytest.raises(ConfigError, match="does not count"):
        uapi.kvm_xsave.count_in(uapi.kvm_xsave.room(0))


def test_a_flexible_array_without_counter_takes_the_rest() -> None:
    ring = uapi.kvm_coalesced_mmio_ring.unpack(bytes(8 + 2 * 24))
    assert len(ring.coalesced_mmio) == 2


def test_the_offset_of_what_is_not_there_is_refused() -> None:
    assert uapi.kvm_run.offset_of("exit.io.port") == 34
    assert uapi.kvm_ioapic_state.offset_of("redirtbl[2]") == 40
    for path in ("exit.nothing", "cr8.low", "s.regs.sregs.interrupt_bitmap[4]"):
        with pytest.raises(ConfigError, match="no field"):
            uapi.kvm_run.offset_of(path)


def test_a_layout_of_ones_own() -> None:
    layout = StructLayout("mine", 8, (("a", 0, "B"), ("b", 4, "i")))
    assert layout.pack({"a": 1, "b": -1}).hex() == "01000000ffffffff"
