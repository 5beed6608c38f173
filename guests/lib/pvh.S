/* A second way in, for others than pykvm: PVH, the boot protocol by which QEMU (-kernel), Xen, Firecracker and Cloud
 * Hypervisor start an ELF file.  A note names a 32-bit entry point (Xen's public/elfnote.h); it is
 * entered in protected mode with flat segments and paging off.  This brings the vCPU to where
 * pykvm starts a long-mode guest, and goes on at the same _start.  pykvm knows PVH too: bare.S is
 * beside this where it is not to take that way. */

.set XEN_ELFNOTE_PHYS32_ENTRY, 18

.section .note.pvh, "a", @note
        .balign 4
        .long   2f - 1f, 4f - 3f, XEN_ELFNOTE_PHYS32_ENTRY
1:      .asciz  "Xen"
2:      .balign 4
3:      .quad   pvh_start
4:

.set CR0_PG, 1 << 31
.set CR4_PAE, 1 << 5
.set MSR_EFER, 0xc0000080
.set EFER_LME, 1 << 8
.set TABLE, 0x3                 /* present, writable */
.set PAGE_2M, 0x83              /* present, writable, large */
.set GIB, 4                     /* so much is identity-mapped: the devices are at its end */

.text
.code32
.globl pvh_start
pvh_start:
        mov     $stack_top, %esp
        movl    $pdpt + TABLE, pml4
        .set    gib, 0
        .rept   GIB
        movl    $pd + gib * 4096 + TABLE, pdpt + gib * 8
        .set    gib, gib + 1
        .endr
        mov     $PAGE_2M, %eax
        mov     $pd, %edi
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $2 << 20, %eax          /* carries after the last page */
        jnc     1b
        mov     $pml4, %eax
        mov     %eax, %cr3

        mov     %cr4, %eax              /* the order that SDM 3A 9.8.5 gives */
        or      $CR4_PAE, %eax
        mov     %eax, %cr4
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        mov     %cr0, %eax
        or      $CR0_PG, %eax
        mov     %eax, %cr0              /* compatibility mode from here ... */
        lgdt    gdt_pointer
        ljmp    $0x08, $long_mode       /* ... to 64-bit code */

.code64
long_mode:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        xor     %edi, %edi              /* argc */
        xor     %esi, %esi              /* argv */
        call    _start

.section .rodata
.balign 8
gdt:    .quad   0
        .quad   0x00209b0000000000      /* 0x08: 64-bit code */
        .quad   0x0000930000000000      /* 0x10: data */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

.bss
.balign 4096
pml4:   .skip   4096
pdpt:   .skip   4096
pd:     .skip   GIB * 4096
        .skip   4096
stack_top:
