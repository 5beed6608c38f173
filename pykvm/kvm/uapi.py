"""The KVM API as data: the layout of every struct, the number of every ioctl.

Written by ``python -m pykvm.kvm.derive`` from the construct definitions in `pykvm.kvm.abi`; change
those, not this.
"""

# fmt: off
# ruff: noqa: E501

from pykvm.kvm.codec import BitsLayout, Repeat, StructLayout, UnionLayout
from pykvm.kvm.flexible import FlexibleLayout

kvm_regs = StructLayout("kvm_regs", 144, (("rax", 0, "Q"), ("rbx", 8, "Q"), ("rcx", 16, "Q"), ("rdx", 24, "Q"), ("rsi", 32, "Q"), ("rdi", 40, "Q"), ("rsp", 48, "Q"), ("rbp", 56, "Q"), ("r8", 64, "Q"), ("r9", 72, "Q"), ("r10", 80, "Q"), ("r11", 88, "Q"), ("r12", 96, "Q"), ("r13", 104, "Q"), ("r14", 112, "Q"), ("r15", 120, "Q"), ("rip", 128, "Q"), ("rflags", 136, "Q"),))
kvm_segment = StructLayout("kvm_segment", 24, (("base", 0, "Q"), ("limit", 8, "L"), ("selector", 12, "H"), ("type", 14, "B"), ("present", 15, "B"), ("dpl", 16, "B"), ("db", 17, "B"), ("s", 18, "B"), ("l", 19, "B"), ("g", 20, "B"), ("avl", 21, "B"), ("unusable", 22, "B"), ("padding", 23, "B"),))
kvm_dtable = StructLayout("kvm_dtable", 16, (("base", 0, "Q"), ("limit", 8, "H"), ("padding", 10, Repeat(3, "H")),))
kvm_sregs = StructLayout("kvm_sregs", 312, (("cs", 0, kvm_segment), ("ds", 24, kvm_segment), ("es", 48, kvm_segment), ("fs", 72, kvm_segment), ("gs", 96, kvm_segment), ("ss", 120, kvm_segment), ("tr", 144, kvm_segment), ("ldt", 168, kvm_segment), ("gdt", 192, kvm_dtable), ("idt", 208, kvm_dtable), ("cr0", 224, "Q"), ("cr2", 232, "Q"), ("cr3", 240, "Q"), ("cr4", 248, "Q"), ("cr8", 256, "Q"), ("efer", 264, "Q"), ("apic_base", 272, "Q"), ("interrupt_bitmap", 280, Repeat(4, "Q")),))
kvm_sregs2 = StructLayout("kvm_sregs2", 320, (("cs", 0, kvm_segment), ("ds", 24, kvm_segment), ("es", 48, kvm_segment), ("fs", 72, kvm_segment), ("gs", 96, kvm_segment), ("ss", 120, kvm_segment), ("tr", 144, kvm_segment), ("ldt", 168, kvm_segment), ("gdt", 192, kvm_dtable), ("idt", 208, kvm_dtable), ("cr0", 224, "Q"), ("cr2", 232, "Q"), ("cr3", 240, "Q"), ("cr4", 248, "Q"), ("cr8", 256, "Q"), ("efer", 264, "Q"), ("apic_base", 272, "Q"), ("flags", 280, "Q"), ("pdptrs", 288, Repeat(4, "Q")),))
kvm_fpu = StructLayout("kvm_fpu", 416, (("fpr", 0, Repeat(8, "16s")), ("fcw", 128, "H"), ("fsw", 130, "H"), ("ftwx", 132, "B"), ("pad1", 133, "B"), ("last_opcode", 134, "H"), ("last_ip", 136, "Q"), ("last_dp", 144, "Q"), ("xmm", 152, Repeat(16, "16s")), ("mxcsr", 408, "L"), ("pad2", 412, "L"),))
kvm_msr_entry = StructLayout("kvm_msr_entry", 16, (("index", 0, "L"), ("reserved", 4, "L"), ("data", 8, "Q"),))
kvm_msrs = FlexibleLayout("kvm_msrs", 8, (("nmsrs", 0, "L"), ("pad", 4, "L"),), tail="entries", element=kvm_msr_entry, counter="nmsrs")
kvm_msr_list = FlexibleLayout("kvm_msr_list", 4, (("nmsrs", 0, "L"),), tail="indices", element="L", counter="nmsrs")
kvm_msr_filter_range = StructLayout("kvm_msr_filter_range", 24, (("flags", 0, "L"), ("nmsrs", 4, "L"), ("base", 8, "L"), ("bitmap", 16, "Q"),))
kvm_msr_filter = StructLayout("kvm_msr_filter", 392, (("flags", 0, "L"), ("ranges", 8, Repeat(16, kvm_msr_filter_range)),))
kvm_cpuid_entry = StructLayout("kvm_cpuid_entry", 24, (("function", 0, "L"), ("eax", 4, "L"), ("ebx", 8, "L"), ("ecx", 12, "L"), ("edx", 16, "L"), ("padding", 20, "L"),))
kvm_cpuid = FlexibleLayout("kvm_cpuid", 8, (("nent", 0, "L"), ("padding", 4, "L"),), tail="entries", element=kvm_cpuid_entry, counter="nent")
kvm_cpuid_entry2 = StructLayout("kvm_cpuid_entry2", 40, (("function", 0, "L"), ("index", 4, "L"), ("flags", 8, "L"), ("eax", 12, "L"), ("ebx", 16, "L"), ("ecx", 20, "L"), ("edx", 24, "L"), ("padding", 28, Repeat(3, "L")),))
kvm_cpuid2 = FlexibleLayout("kvm_cpuid2", 8, (("nent", 0, "L"), ("padding", 4, "L"),), tail="entries", element=kvm_cpuid_entry2, counter="nent")
kvm_lapic_state = StructLayout("kvm_lapic_state", 1024, (("regs", 0, "1024s"),))
kvm_mp_state = StructLayout("kvm_mp_state", 4, (("mp_state", 0, "L"),))
kvm_interrupt = StructLayout("kvm_interrupt", 4, (("irq", 0, "L"),))
kvm_translation = StructLayout("kvm_translation", 24, (("linear_address", 0, "Q"), ("physical_address", 8, "Q"), ("valid", 16, "B"), ("writeable", 17, "B"), ("usermode", 18, "B"), ("pad", 19, "5s"),))
kvm_signal_mask = FlexibleLayout("kvm_signal_mask", 4, (("len", 0, "L"),), tail="sigset", element="s", counter="len")
kvm_tpr_access_ctl = StructLayout("kvm_tpr_access_ctl", 40, (("enabled", 0, "L"), ("flags", 4, "L"), ("reserved", 8, Repeat(8, "L")),))
kvm_vapic_addr = StructLayout("kvm_vapic_addr", 8, (("vapic_addr", 0, "Q"),))
kvm_debug_exit_arch = StructLayout("kvm_debug_exit_arch", 32, (("exception", 0, "L"), ("pad", 4, "L"), ("pc", 8, "Q"), ("dr6", 16, "Q"), ("dr7", 24, "Q"),))
kvm_guest_debug_arch = StructLayout("kvm_guest_debug_arch", 64, (("debugreg", 0, Repeat(8, "Q")),))
kvm_guest_debug = StructLayout("kvm_guest_debug", 72, (("control", 0, "L"), ("pad", 4, "L"), ("arch", 8, kvm_guest_debug_arch),))
kvm_vcpu_events = StructLayout("kvm_vcpu_events", 64, (("exception", 0, StructLayout("kvm_vcpu_events.exception", 8, (("injected", 0, "B"), ("nr", 1, "B"), ("has_error_code", 2, "B"), ("pending", 3, "B"), ("error_code", 4, "L"),))), ("interrupt", 8, StructLayout("kvm_vcpu_events.interrupt", 4, (("injected", 0, "B"), ("nr", 1, "B"), ("soft", 2, "B"), ("shadow", 3, "B"),))), ("nmi", 12, StructLayout("kvm_vcpu_events.nmi", 4, (("injected", 0, "B"), ("pending", 1, "B"), ("masked", 2, "B"), ("pad", 3, "B"),))), ("sipi_vector", 16, "L"), ("flags", 20, "L"), ("smi", 24, StructLayout("kvm_vcpu_events.smi", 4, (("smm", 0, "B"), ("pending", 1, "B"), ("smm_inside_nmi", 2, "B"), ("latched_init", 3, "B"),))), ("triple_fault", 28, StructLayout("kvm_vcpu_events.triple_fault", 1, (("pending", 0, "B"),))), ("reserved", 29, "26s"), ("exception_has_payload", 55, "B"), ("exception_payload", 56, "Q"),))
kvm_debugregs = StructLayout("kvm_debugregs", 128, (("db", 0, Repeat(4, "Q")), ("dr6", 32, "Q"), ("dr7", 40, "Q"), ("flags", 48, "Q"), ("reserved", 56, Repeat(9, "Q")),))
kvm_xsave = FlexibleLayout("kvm_xsave", 4096, (("region", 0, "4096s"),), tail="extra", element="s")
kvm_xcr = StructLayout("kvm_xcr", 16, (("xcr", 0, "L"), ("reserved", 4, "L"), ("value", 8, "Q"),))
kvm_xcrs = StructLayout("kvm_xcrs", 392, (("nr_xcrs", 0, "L"), ("flags", 4, "L"), ("xcrs", 8, Repeat(16, kvm_xcr)), ("padding", 264, Repeat(16, "Q")),))
kvm_sync_regs = StructLayout("kvm_sync_regs", 520, (("regs", 0, kvm_regs), ("sregs", 144, kvm_sregs), ("events", 456, kvm_vcpu_events),))
kvm_x86_mce = StructLayout("kvm_x86_mce", 64, (("status", 0, "Q"), ("addr", 8, "Q"), ("misc", 16, "Q"), ("mcg_status", 24, "Q"), ("bank", 32, "B"), ("pad1", 33, "7s"), ("pad2", 40, Repeat(3, "Q")),))
kvm_one_reg = StructLayout("kvm_one_reg", 16, (("id", 0, "Q"), ("addr", 8, "Q"),))
kvm_reg_list = FlexibleLayout("kvm_reg_list", 8, (("n", 0, "Q"),), tail="reg", element="Q", counter="n")
kvm_pre_fault_memory = StructLayout("kvm_pre_fault_memory", 64, (("gpa", 0, "Q"), ("size", 8, "Q"), ("flags", 16, "Q"), ("padding", 24, Repeat(5, "Q")),))
kvm_vmx_nested_state_data = StructLayout("kvm_vmx_nested_state_data", 8192, (("vmcs12", 0, "4096s"), ("shadow_vmcs12", 4096, "4096s"),))
kvm_vmx_nested_state_hdr = StructLayout("kvm_vmx_nested_state_hdr", 32, (("vmxon_pa", 0, "Q"), ("vmcs12_pa", 8, "Q"), ("smm", 16, StructLayout("kvm_vmx_nested_state_hdr.smm", 2, (("flags", 0, "H"),))), ("pad", 18, "H"), ("flags", 20, "L"), ("preemption_timer_deadline", 24, "Q"),))
kvm_svm_nested_state_data = StructLayout("kvm_svm_nested_state_data", 4096, (("vmcb12", 0, "4096s"),))
kvm_svm_nested_state_hdr = StructLayout("kvm_svm_nested_state_hdr", 8, (("vmcb_pa", 0, "Q"),))
kvm_nested_state = FlexibleLayout("kvm_nested_state", 128, (("flags", 0, "H"), ("format", 2, "H"), ("size", 4, "L"), ("hdr", 8, UnionLayout("kvm_nested_state.hdr", 120, (("vmx", kvm_vmx_nested_state_hdr), ("svm", kvm_svm_nested_state_hdr), ("pad", "120s"),))),), tail="data", element="s")
kvm_userspace_memory_region = StructLayout("kvm_userspace_memory_region", 32, (("slot", 0, "L"), ("flags", 4, "L"), ("guest_phys_addr", 8, "Q"), ("memory_size", 16, "Q"), ("userspace_addr", 24, "Q"),))
kvm_userspace_memory_region2 = StructLayout("kvm_userspace_memory_region2", 160, (("slot", 0, "L"), ("flags", 4, "L"), ("guest_phys_addr", 8, "Q"), ("memory_size", 16, "Q"), ("userspace_addr", 24, "Q"), ("guest_memfd_offset", 32, "Q"), ("guest_memfd", 40, "L"), ("pad1", 44, "L"), ("pad2", 48, Repeat(14, "Q")),))
kvm_memory_attributes = StructLayout("kvm_memory_attributes", 32, (("address", 0, "Q"), ("size", 8, "Q"), ("attributes", 16, "Q"), ("flags", 24, "Q"),))
kvm_create_guest_memfd = StructLayout("kvm_create_guest_memfd", 64, (("size", 0, "Q"), ("flags", 8, "Q"), ("reserved", 16, Repeat(6, "Q")),))
kvm_dirty_log = StructLayout("kvm_dirty_log", 16, (("slot", 0, "L"), ("padding1", 4, "L"), ("dirty_bitmap", 8, "Q"),), aliases=(("padding2", 8, "Q"),))
kvm_clear_dirty_log = StructLayout("kvm_clear_dirty_log", 24, (("slot", 0, "L"), ("num_pages", 4, "L"), ("first_page", 8, "Q"), ("dirty_bitmap", 16, "Q"),), aliases=(("padding2", 16, "Q"),))
kvm_dirty_gfn = StructLayout("kvm_dirty_gfn", 16, (("flags", 0, "L"), ("slot", 4, "L"), ("offset", 8, "Q"),))
kvm_coalesced_mmio_zone = StructLayout("kvm_coalesced_mmio_zone", 16, (("addr", 0, "Q"), ("size", 8, "L"), ("pio", 12, "L"),), aliases=(("pad", 12, "L"),))
kvm_coalesced_mmio = StructLayout("kvm_coalesced_mmio", 24, (("phys_addr", 0, "Q"), ("len", 8, "L"), ("pio", 12, "L"), ("data", 16, "8s"),), aliases=(("pad", 12, "L"),))
kvm_coalesced_mmio_ring = FlexibleLayout("kvm_coalesced_mmio_ring", 8, (("first", 0, "L"), ("last", 4, "L"),), tail="coalesced_mmio", element=kvm_coalesced_mmio)
kvm_irq_level = StructLayout("kvm_irq_level", 8, (("irq", 0, "L"), ("level", 4, "L"),), aliases=(("status", 0, "l"),))
kvm_pic_state = StructLayout("kvm_pic_state", 16, (("last_irr", 0, "B"), ("irr", 1, "B"), ("imr", 2, "B"), ("isr", 3, "B"), ("priority_add", 4, "B"), ("irq_base", 5, "B"), ("read_reg_select", 6, "B"), ("poll", 7, "B"), ("special_mask", 8, "B"), ("init_state", 9, "B"), ("auto_eoi", 10, "B"), ("rotate_on_auto_eoi", 11, "B"), ("special_fully_nested_mode", 12, "B"), ("init4", 13, "B"), ("elcr", 14, "B"), ("elcr_mask", 15, "B"),))
kvm_ioapic_state = StructLayout("kvm_ioapic_state", 216, (("base_address", 0, "Q"), ("ioregsel", 8, "L"), ("id", 12, "L"), ("irr", 16, "L"), ("pad", 20, "L"), ("redirtbl", 24, Repeat(24, UnionLayout("kvm_ioapic_state.redirtbl", 8, (("bits", "Q"), ("fields", BitsLayout("kvm_ioapic_state.redirtbl.fields", 8, (("vector", 0, 8), ("delivery_mode", 8, 3), ("dest_mode", 11, 1), ("delivery_status", 12, 1), ("polarity", 13, 1), ("remote_irr", 14, 1), ("trig_mode", 15, 1), ("mask", 16, 1), ("reserve", 17, 7), ("reserved", 24, 32), ("dest_id", 56, 8),))),)))),))
kvm_irqchip = StructLayout("kvm_irqchip", 520, (("chip_id", 0, "L"), ("pad", 4, "L"), ("chip", 8, UnionLayout("kvm_irqchip.chip", 512, (("dummy", "512s"), ("pic", kvm_pic_state), ("ioapic", kvm_ioapic_state),))),))
kvm_pit_config = StructLayout("kvm_pit_config", 64, (("flags", 0, "L"), ("pad", 4, Repeat(15, "L")),))
kvm_pit_channel_state = StructLayout("kvm_pit_channel_state", 24, (("count", 0, "L"), ("latched_count", 4, "H"), ("count_latched", 6, "B"), ("status_latched", 7, "B"), ("status", 8, "B"), ("read_state", 9, "B"), ("write_state", 10, "B"), ("write_latch", 11, "B"), ("rw_mode", 12, "B"), ("mode", 13, "B"), ("bcd", 14, "B"), ("gate", 15, "B"), ("count_load_time", 16, "q"),))
kvm_pit_state = StructLayout("kvm_pit_state", 72, (("channels", 0, Repeat(3, kvm_pit_channel_state)),))
kvm_pit_state2 = StructLayout("kvm_pit_state2", 112, (("channels", 0, Repeat(3, kvm_pit_channel_state)), ("flags", 72, "L"), ("reserved", 76, Repeat(9, "L")),))
kvm_reinject_control = StructLayout("kvm_reinject_control", 32, (("pit_reinject", 0, "B"), ("reserved", 1, "31s"),))
kvm_irq_routing_irqchip = StructLayout("kvm_irq_routing_irqchip", 8, (("irqchip", 0, "L"), ("pin", 4, "L"),))
kvm_irq_routing_msi = StructLayout("kvm_irq_routing_msi", 16, (("address_lo", 0, "L"), ("address_hi", 4, "L"), ("data", 8, "L"), ("devid", 12, "L"),), aliases=(("pad", 12, "L"),))
kvm_irq_routing_hv_sint = StructLayout("kvm_irq_routing_hv_sint", 8, (("vcpu", 0, "L"), ("sint", 4, "L"),))
kvm_irq_routing_entry = StructLayout("kvm_irq_routing_entry", 48, (("gsi", 0, "L"), ("type", 4, "L"), ("flags", 8, "L"), ("pad", 12, "L"), ("u", 16, UnionLayout("kvm_irq_routing_entry.u", 32, (("irqchip", kvm_irq_routing_irqchip), ("msi", kvm_irq_routing_msi), ("hv_sint", kvm_irq_routing_hv_sint), ("pad", Repeat(8, "L")),))),))
kvm_irq_routing = FlexibleLayout("kvm_irq_routing", 8, (("nr", 0, "L"), ("flags", 4, "L"),), tail="entries", element=kvm_irq_routing_entry, counter="nr")
kvm_msi = StructLayout("kvm_msi", 32, (("address_lo", 0, "L"), ("address_hi", 4, "L"), ("data", 8, "L"), ("flags", 12, "L"), ("devid", 16, "L"), ("pad", 20, "12s"),))
kvm_irqfd = StructLayout("kvm_irqfd", 32, (("fd", 0, "L"), ("gsi", 4, "L"), ("flags", 8, "L"), ("resamplefd", 12, "L"), ("pad", 16, "16s"),))
kvm_ioeventfd = StructLayout("kvm_ioeventfd", 64, (("datamatch", 0, "Q"), ("addr", 8, "Q"), ("len", 16, "L"), ("fd", 20, "l"), ("flags", 24, "L"), ("pad", 28, "36s"),))
kvm_hyperv_eventfd = StructLayout("kvm_hyperv_eventfd", 24, (("conn_id", 0, "L"), ("fd", 4, "l"), ("flags", 8, "L"), ("padding", 12, Repeat(3, "L")),))
kvm_clock_data = StructLayout("kvm_clock_data", 48, (("clock", 0, "Q"), ("flags", 8, "L"), ("pad0", 12, "L"), ("realtime", 16, "Q"), ("host_tsc", 24, "Q"), ("pad", 32, Repeat(4, "L")),))
kvm_enable_cap = StructLayout("kvm_enable_cap", 104, (("cap", 0, "L"), ("flags", 4, "L"), ("args", 8, Repeat(4, "Q")), ("pad", 40, "64s"),))
kvm_pmu_event_filter = FlexibleLayout("kvm_pmu_event_filter", 32, (("action", 0, "L"), ("nevents", 4, "L"), ("fixed_counter_bitmap", 8, "L"), ("flags", 12, "L"), ("pad", 16, Repeat(4, "L")),), tail="events", element="Q", counter="nevents")
kvm_create_device = StructLayout("kvm_create_device", 12, (("type", 0, "L"), ("fd", 4, "L"), ("flags", 8, "L"),))
kvm_device_attr = StructLayout("kvm_device_attr", 24, (("flags", 0, "L"), ("group", 4, "L"), ("attr", 8, "Q"), ("addr", 16, "Q"),))
kvm_stats_header = StructLayout("kvm_stats_header", 24, (("flags", 0, "L"), ("name_size", 4, "L"), ("num_desc", 8, "L"), ("id_offset", 12, "L"), ("desc_offset", 16, "L"), ("data_offset", 20, "L"),))
kvm_stats_desc = FlexibleLayout("kvm_stats_desc", 16, (("flags", 0, "L"), ("exponent", 4, "h"), ("size", 6, "H"), ("offset", 8, "L"), ("bucket_size", 12, "L"),), tail="name", element="s")
kvm_hyperv_exit = StructLayout("kvm_hyperv_exit", 56, (("type", 0, "L"), ("pad1", 4, "L"), ("u", 8, UnionLayout("kvm_hyperv_exit.u", 48, (("synic", StructLayout("kvm_hyperv_exit.u.synic", 32, (("msr", 0, "L"), ("pad2", 4, "L"), ("control", 8, "Q"), ("evt_page", 16, "Q"), ("msg_page", 24, "Q"),))), ("hcall", StructLayout("kvm_hyperv_exit.u.hcall", 32, (("input", 0, "Q"), ("result", 8, "Q"), ("params", 16, Repeat(2, "Q")),))), ("syndbg", StructLayout("kvm_hyperv_exit.u.syndbg", 48, (("msr", 0, "L"), ("pad2", 4, "L"), ("control", 8, "Q"), ("status", 16, "Q"), ("send_page", 24, "Q"), ("recv_page", 32, "Q"), ("pending_page", 40, "Q"),))),))),))
kvm_run_hw = StructLayout("kvm_run_hw", 8, (("hardware_exit_reason", 0, "Q"),))
kvm_run_fail_entry = StructLayout("kvm_run_fail_entry", 16, (("hardware_entry_failure_reason", 0, "Q"), ("cpu", 8, "L"),))
kvm_run_ex = StructLayout("kvm_run_ex", 8, (("exception", 0, "L"), ("error_code", 4, "L"),))
kvm_run_io = StructLayout("kvm_run_io", 16, (("direction", 0, "B"), ("size", 1, "B"), ("port", 2, "H"), ("count", 4, "L"), ("data_offset", 8, "Q"),))
kvm_run_debug = StructLayout("kvm_run_debug", 32, (("arch", 0, kvm_debug_exit_arch),))
kvm_run_mmio = StructLayout("kvm_run_mmio", 24, (("phys_addr", 0, "Q"), ("data", 8, "8s"), ("len", 16, "L"), ("is_write", 20, "B"),))
kvm_run_hypercall = StructLayout("kvm_run_hypercall", 72, (("nr", 0, "Q"), ("args", 8, Repeat(6, "Q")), ("ret", 56, "Q"), ("flags", 64, "Q"),), aliases=(("longmode", 64, "L"),))
kvm_run_tpr_access = StructLayout("kvm_run_tpr_access", 16, (("rip", 0, "Q"), ("is_write", 8, "L"), ("pad", 12, "L"),))
kvm_run_internal = StructLayout("kvm_run_internal", 136, (("suberror", 0, "L"), ("ndata", 4, "L"), ("data", 8, Repeat(16, "Q")),))
kvm_run_emulation_failure = StructLayout("kvm_run_emulation_failure", 32, (("suberror", 0, "L"), ("ndata", 4, "L"), ("flags", 8, "Q"), ("insn_size", 16, "B"), ("insn_bytes", 17, "15s"),))
kvm_run_system_event = StructLayout("kvm_run_system_event", 136, (("type", 0, "L"), ("ndata", 4, "L"), ("data", 8, Repeat(16, "Q")),), aliases=(("flags", 8, "Q"),))
kvm_run_eoi = StructLayout("kvm_run_eoi", 1, (("vector", 0, "B"),))
kvm_run_msr = StructLayout("kvm_run_msr", 24, (("error", 0, "B"), ("pad", 1, "7s"), ("reason", 8, "L"), ("index", 12, "L"), ("data", 16, "Q"),))
kvm_run_notify = StructLayout("kvm_run_notify", 4, (("flags", 0, "L"),))
kvm_run_memory_fault = StructLayout("kvm_run_memory_fault", 24, (("flags", 0, "Q"), ("gpa", 8, "Q"), ("size", 16, "Q"),))
kvm_run = StructLayout("kvm_run", 2352, (("request_interrupt_window", 0, "B"), ("immediate_exit", 1, "B"), ("padding1", 2, "6s"), ("exit_reason", 8, "L"), ("ready_for_interrupt_injection", 12, "B"), ("if_flag", 13, "B"), ("flags", 14, "H"), ("cr8", 16, "Q"), ("apic_base", 24, "Q"), ("exit", 32, UnionLayout("kvm_run.exit", 256, (("hw", kvm_run_hw), ("fail_entry", kvm_run_fail_entry), ("ex", kvm_run_ex), ("io", kvm_run_io), ("debug", kvm_run_debug), ("mmio", kvm_run_mmio), ("hypercall", kvm_run_hypercall), ("tpr_access", kvm_run_tpr_access), ("internal", kvm_run_internal), ("emulation_failure", kvm_run_emulation_failure), ("system_event", kvm_run_system_event), ("eoi", kvm_run_eoi), ("hyperv", kvm_hyperv_exit), ("msr", kvm_run_msr), ("notify", kvm_run_notify), ("memory_fault", kvm_run_memory_fault), ("padding", "256s"),))), ("kvm_valid_regs", 288, "Q"), ("kvm_dirty_regs", 296, "Q"), ("s", 304, UnionLayout("kvm_run.s", 2048, (("regs", kvm_sync_regs), ("padding", "2048s"),))),))

KVM_GET_API_VERSION = 0xae00
KVM_CREATE_VM = 0xae01
KVM_GET_MSR_INDEX_LIST = 0xc004ae02
KVM_CHECK_EXTENSION = 0xae03
KVM_GET_VCPU_MMAP_SIZE = 0xae04
KVM_GET_SUPPORTED_CPUID = 0xc008ae05
KVM_GET_EMULATED_CPUID = 0xc008ae09
KVM_GET_MSR_FEATURE_INDEX_LIST = 0xc004ae0a
KVM_CREATE_VCPU = 0xae41
KVM_GET_DIRTY_LOG = 0x4010ae42
KVM_SET_NR_MMU_PAGES = 0xae44
KVM_GET_NR_MMU_PAGES = 0xae45
KVM_SET_USER_MEMORY_REGION = 0x4020ae46
KVM_SET_TSS_ADDR = 0xae47
KVM_SET_IDENTITY_MAP_ADDR = 0x4008ae48
KVM_SET_USER_MEMORY_REGION2 = 0x40a0ae49
KVM_CREATE_IRQCHIP = 0xae60
KVM_IRQ_LINE = 0x4008ae61
KVM_GET_IRQCHIP = 0xc208ae62
KVM_SET_IRQCHIP = 0x8208ae63
KVM_CREATE_PIT = 0xae64
KVM_GET_PIT = 0xc048ae65
KVM_SET_PIT = 0x8048ae66
KVM_IRQ_LINE_STATUS = 0xc008ae67
KVM_REGISTER_COALESCED_MMIO = 0x4010ae67
KVM_UNREGISTER_COALESCED_MMIO = 0x4010ae68
KVM_SET_GSI_ROUTING = 0x4008ae6a
KVM_REINJECT_CONTROL = 0xae71
KVM_IRQFD = 0x4020ae76
KVM_CREATE_PIT2 = 0x4040ae77
KVM_SET_BOOT_CPU_ID = 0xae78
KVM_IOEVENTFD = 0x4040ae79
KVM_SET_CLOCK = 0x4030ae7b
KVM_GET_CLOCK = 0x8030ae7c
KVM_GET_PIT2 = 0x8070ae9f
KVM_SET_PIT2 = 0x4070aea0
KVM_SIGNAL_MSI = 0x4020aea5
KVM_SET_PMU_EVENT_FILTER = 0x4020aeb2
KVM_HYPERV_EVENTFD = 0x4018aebd
KVM_CLEAR_DIRTY_LOG = 0xc018aec0
KVM_X86_SET_MSR_FILTER = 0x4188aec6
KVM_RESET_DIRTY_RINGS = 0xaec7
KVM_SET_MEMORY_ATTRIBUTES = 0x4020aed2
KVM_CREATE_GUEST_MEMFD = 0xc040aed4
KVM_CREATE_DEVICE = 0xc00caee0
KVM_SET_DEVICE_ATTR = 0x4018aee1
KVM_GET_DEVICE_ATTR = 0x4018aee2
KVM_HAS_DEVICE_ATTR = 0x4018aee3
KVM_RUN = 0xae80
KVM_GET_REGS = 0x8090ae81
KVM_SET_REGS = 0x4090ae82
KVM_GET_SREGS = 0x8138ae83
KVM_SET_SREGS = 0x4138ae84
KVM_TRANSLATE = 0xc018ae85
KVM_INTERRUPT = 0x4004ae86
KVM_GET_MSRS = 0xc008ae88
KVM_SET_MSRS = 0x4008ae89
KVM_SET_CPUID = 0x4008ae8a
KVM_SET_SIGNAL_MASK = 0x4004ae8b
KVM_GET_FPU = 0x81a0ae8c
KVM_SET_FPU = 0x41a0ae8d
KVM_GET_LAPIC = 0x8400ae8e
KVM_SET_LAPIC = 0x4400ae8f
KVM_SET_CPUID2 = 0x4008ae90
KVM_GET_CPUID2 = 0xc008ae91
KVM_TPR_ACCESS_REPORTING = 0xc028ae92
KVM_SET_VAPIC_ADDR = 0x4008ae93
KVM_GET_MP_STATE = 0x8004ae98
KVM_SET_MP_STATE = 0x4004ae99
KVM_NMI = 0xae9a
KVM_SET_GUEST_DEBUG = 0x4048ae9b
KVM_X86_SETUP_MCE = 0x4008ae9c
KVM_X86_GET_MCE_CAP_SUPPORTED = 0x8008ae9d
KVM_X86_SET_MCE = 0x4040ae9e
KVM_GET_VCPU_EVENTS = 0x8040ae9f
KVM_SET_VCPU_EVENTS = 0x4040aea0
KVM_GET_DEBUGREGS = 0x8080aea1
KVM_SET_DEBUGREGS = 0x4080aea2
KVM_SET_TSC_KHZ = 0xaea2
KVM_GET_TSC_KHZ = 0xaea3
KVM_ENABLE_CAP = 0x4068aea3
KVM_GET_XSAVE = 0x9000aea4
KVM_SET_XSAVE = 0x5000aea5
KVM_GET_XCRS = 0x8188aea6
KVM_SET_XCRS = 0x4188aea7
KVM_GET_ONE_REG = 0x4010aeab
KVM_SET_ONE_REG = 0x4010aeac
KVM_KVMCLOCK_CTRL = 0xaead
KVM_GET_REG_LIST = 0xc008aeb0
KVM_SMI = 0xaeb7
KVM_GET_NESTED_STATE = 0xc080aebe
KVM_SET_NESTED_STATE = 0x4080aebf
KVM_GET_SUPPORTED_HV_CPUID = 0xc008aec1
KVM_GET_SREGS2 = 0x8140aecc
KVM_SET_SREGS2 = 0x4140aecd
KVM_GET_STATS_FD = 0xaece
KVM_GET_XSAVE2 = 0x9000aecf
KVM_PRE_FAULT_MEMORY = 0xc040aed5
