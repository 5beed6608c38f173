"""The structs of a VM: memory, interrupt controllers and routing, clock, events, devices."""

from __future__ import annotations

from pykvm.kvm.abi.types import (
    Array,
    Bytes,
    GreedyBytes,
    GreedyRange,
    Struct,
    alias,
    bitfields,
    pointer,
    s16,
    s32,
    s64,
    this,
    u8,
    u16,
    u32,
    u64,
    union,
)

kvm_userspace_memory_region = Struct(
    "slot" / u32,
    "flags" / u32,
    "guest_phys_addr" / u64,
    "memory_size" / u64,
    "userspace_addr" / u64,
)

kvm_userspace_memory_region2 = Struct(
    "slot" / u32,
    "flags" / u32,
    "guest_phys_addr" / u64,
    "memory_size" / u64,
    "userspace_addr" / u64,
    "guest_memfd_offset" / u64,
    "guest_memfd" / u32,
    "pad1" / u32,
    "pad2" / Array(14, u64),
)

kvm_memory_attributes = Struct(
    "address" / u64,
    "size" / u64,
    "attributes" / u64,
    "flags" / u64,
)

kvm_create_guest_memfd = Struct(
    "size" / u64,
    "flags" / u64,
    "reserved" / Array(6, u64),
)

kvm_dirty_log = Struct(
    "slot" / u32,
    "padding1" / u32,
    alias("padding2", u64),
    "dirty_bitmap" / pointer,
)

kvm_clear_dirty_log = Struct(
    "slot" / u32,
    "num_pages" / u32,
    "first_page" / u64,
    alias("padding2", u64),
    "dirty_bitmap" / pointer,
)

kvm_dirty_gfn = Struct(
    "flags" / u32,
    "slot" / u32,
    "offset" / u64,
)

kvm_coalesced_mmio_zone = Struct(
    "addr" / u64,
    "size" / u32,
    alias("pad", u32),
    "pio" / u32,
)

kvm_coalesced_mmio = Struct(
    "phys_addr" / u64,
    "len" / u32,
    alias("pad", u32),
    "pio" / u32,
    "data" / Bytes(8),
)

# The ring fills its page: how many entries that makes is KVM_COALESCED_MMIO_MAX.
kvm_coalesced_mmio_ring = Struct(
    "first" / u32,
    "last" / u32,
    "coalesced_mmio" / GreedyRange(kvm_coalesced_mmio),
)

kvm_irq_level = Struct(
    alias("status", s32),
    "irq" / u32,
    "level" / u32,
)

kvm_pic_state = Struct(
    "last_irr" / u8,
    "irr" / u8,
    "imr" / u8,
    "isr" / u8,
    "priority_add" / u8,
    "irq_base" / u8,
    "read_reg_select" / u8,
    "poll" / u8,
    "special_mask" / u8,
    "init_state" / u8,
    "auto_eoi" / u8,
    "rotate_on_auto_eoi" / u8,
    "special_fully_nested_mode" / u8,
    "init4" / u8,
    "elcr" / u8,
    "elcr_mask" / u8,
)

kvm_ioapic_state = Struct(
    "base_address" / u64,
    "ioregsel" / u32,
    "id" / u32,
    "irr" / u32,
    "pad" / u32,
    "redirtbl"
    / Array(
        24,
        union(
            8,
            "bits" / u64,
            "fields"
            / bitfields(
                ("vector", 8),
                ("delivery_mode", 3),
                ("dest_mode", 1),
                ("delivery_status", 1),
                ("polarity", 1),
                ("remote_irr", 1),
                ("trig_mode", 1),
                ("mask", 1),
                ("reserve", 7),
                ("reserved", 32),
                ("dest_id", 8),
            ),
        ),
    ),
)

kvm_irqchip = Struct(
    "chip_id" / u32,
    "pad" / u32,
    "chip"
    / union(
        512,
        "dummy" / Bytes(512),
        "pic" / kvm_pic_state,
        "ioapic" / kvm_ioapic_state,
    ),
)

kvm_pit_config = Struct(
    "flags" / u32,
    "pad" / Array(15, u32),
)

kvm_pit_channel_state = Struct(
    "count" / u32,
    "latched_count" / u16,
    "count_latched" / u8,
    "status_latched" / u8,
    "status" / u8,
    "read_state" / u8,
    "write_state" / u8,
    "write_latch" / u8,
    "rw_mode" / u8,
    "mode" / u8,
    "bcd" / u8,
    "gate" / u8,
    "count_load_time" / s64,
)

kvm_pit_state = Struct("channels" / Array(3, kvm_pit_channel_state))

kvm_pit_state2 = Struct(
    "channels" / Array(3, kvm_pit_channel_state),
    "flags" / u32,
    "reserved" / Array(9, u32),
)

kvm_reinject_control = Struct(
    "pit_reinject" / u8,
    "reserved" / Bytes(31),
)

kvm_irq_routing_irqchip = Struct(
    "irqchip" / u32,
    "pin" / u32,
)

kvm_irq_routing_msi = Struct(
    "address_lo" / u32,
    "address_hi" / u32,
    "data" / u32,
    alias("pad", u32),
    "devid" / u32,
)

kvm_irq_routing_hv_sint = Struct(
    "vcpu" / u32,
    "sint" / u32,
)

kvm_irq_routing_entry = Struct(
    "gsi" / u32,
    "type" / u32,
    "flags" / u32,
    "pad" / u32,
    "u"
    / union(
        32,
        "irqchip" / kvm_irq_routing_irqchip,
        "msi" / kvm_irq_routing_msi,
        "hv_sint" / kvm_irq_routing_hv_sint,
        "pad" / Array(8, u32),
    ),
)

kvm_irq_routing = Struct(
    "nr" / u32,
    "flags" / u32,
    "entries" / Array(this.nr, kvm_irq_routing_entry),
)

kvm_msi = Struct(
    "address_lo" / u32,
    "address_hi" / u32,
    "data" / u32,
    "flags" / u32,
    "devid" / u32,
    "pad" / Bytes(12),
)

kvm_irqfd = Struct(
    "fd" / u32,
    "gsi" / u32,
    "flags" / u32,
    "resamplefd" / u32,
    "pad" / Bytes(16),
)

kvm_ioeventfd = Struct(
    "datamatch" / u64,
    "addr" / u64,
    "len" / u32,
    "fd" / s32,
    "flags" / u32,
    "pad" / Bytes(36),
)

kvm_hyperv_eventfd = Struct(
    "conn_id" / u32,
    "fd" / s32,
    "flags" / u32,
    "padding" / Array(3, u32),
)

kvm_clock_data = Struct(
    "clock" / u64,
    "flags" / u32,
    "pad0" / u32,
    "realtime" / u64,
    "host_tsc" / u64,
    "pad" / Array(4, u32),
)

kvm_enable_cap = Struct(
    "cap" / u32,
    "flags" / u32,
    "args" / Array(4, u64),
    "pad" / Bytes(64),
)

kvm_pmu_event_filter = Struct(
    "action" / u32,
    "nevents" / u32,
    "fixed_counter_bitmap" / u32,
    "flags" / u32,
    "pad" / Array(4, u32),
    "events" / Array(this.nevents, u64),
)

kvm_create_device = Struct(
    "type" / u32,
    "fd" / u32,
    "flags" / u32,
)

kvm_device_attr = Struct(
    "flags" / u32,
    "group" / u32,
    "attr" / u64,
    "addr" / u64,
)

kvm_stats_header = Struct(
    "flags" / u32,
    "name_size" / u32,
    "num_desc" / u32,
    "id_offset" / u32,
    "desc_offset" / u32,
    "data_offset" / u32,
)

# kvm_stats_header.name_size says how long each `name` is.
kvm_stats_desc = Struct(
    "flags" / u32,
    "exponent" / s16,
    "size" / u16,
    "offset" / u32,
    "bucket_size" / u32,
    "name" / GreedyBytes,
)
