"""What the architecture manuals define, as pure functions and values: bytes in, bytes out.

Nothing here knows KVM or needs /dev/kvm.  Import the module of the subject:

- `registers`: the bits of CR0, CR3, CR4, EFER, RFLAGS, DR6 and the #PF error code, by name
- `descriptors`, `tss`: segment descriptors, gates, and the images of GDT, IDT, IVT and TSS
- `paging`: page tables of every mode, built and walked
- `state`: the registers of a vCPU, and the states that guests start in
- `cpuid`: CPUID as a table that can be read by feature name and filtered
- `mtrr`: memory types by address, as firmware leaves them
- `diagnose`: why a guest died, in one sentence

"SDM" is the Intel 64 and IA-32 Architectures Software Developer's Manual (volume and section, as
numbered in order number 325462-080US), "APM" the AMD64 Architecture Programmer's Manual.
"""
