/* Where application processors begin.  SIPI starts one in real mode at the 4 KiB page that its vector
 * names (SDM 3A 8.4.4), which is below 1 MiB; start_aps() (lib/smp.c) copies the code from here to
 * there.  Each processor goes through protected mode to long mode, onto the page tables and the IDT
 * of the first, takes a stack and calls ap_main(). */

.set CR0_PE, 1 << 0
.set CR0_PG, 1 << 31
.set CR4_PAE, 1 << 5
.set MSR_EFER, 0xc0000080
.set EFER_LME, 1 << 8

#include "lib/smp.h"

#define COPIED(label) (label - ap_start + ap_page)

.text
.code16
.globl ap_start, ap_end
ap_start:
        cli
        mov     %cs, %ax                /* the page's address, a sixteenth of it */
        mov     %ax, %ds
        lgdtl   ap_gdt_pointer - ap_start
        mov     %cr0, %eax
        or      $CR0_PE, %eax
        mov     %eax, %cr0
        ljmpl   $0x18, $COPIED(1f)

.code32
1:      mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %cr4, %eax              /* the order that SDM 3A 9.8.5 gives */
        or      $CR4_PAE, %eax
        mov     %eax, %cr4
        mov     ap_cr3, %eax
        mov     %eax, %cr3
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        mov     %cr0, %eax
        or      $CR0_PG, %eax
        mov     %eax, %cr0
        ljmp    $0x08, $COPIED(1f)

.code64
1:      lidt    ap_idt
        mov     $1, %edi                /* each takes a number, and the stack of that number */
        lock xadd %edi, ap_next
        cmp     $MAX_CPUS, %edi
        jae     2f
        mov     %edi, %eax
        shl     $12, %rax
        lea     ap_stacks(%rax), %rsp
        xor     %ebp, %ebp
        mov     $ap_main, %eax
        call    *%rax
2:      cli
        hlt
        jmp     2b

.balign 8
ap_gdt: .quad   0
        .quad   0x00209b0000000000      /* 0x08: 64-bit code, as KERNEL_CODE in lib/descriptors.h */
        .quad   0x00cf93000000ffff      /* 0x10: data; protected mode heeds its limit of 4 GiB */
        .quad   0x00cf9b000000ffff      /* 0x18: 32-bit code, on the way */
ap_gdt_pointer:
        .word   ap_gdt_pointer - ap_gdt - 1
        .long   COPIED(ap_gdt)
ap_end:

.data
.globl ap_cr3, ap_idt, ap_next
.balign 8
ap_cr3: .quad   0
ap_idt: .skip   10
.balign 4
ap_next:
        .long   1                       /* the first processor is number 0 */

/* The linker puts it below 1 MiB, and no VMM anything else there. */
.section .trampoline, "aw", @nobits
.balign 4096
.globl ap_page
ap_page:
        .skip   4096
