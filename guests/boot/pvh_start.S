/* The first instructions of boot/pvh.c and the note that leads to them: a stack, and EBX, which
 * holds the address of the start info, as its argument. */

.set XEN_ELFNOTE_PHYS32_ENTRY, 18

.section .note.pvh, "a", @note
        .balign 4
        .long   2f - 1f, 4f - 3f, XEN_ELFNOTE_PHYS32_ENTRY
1:      .asciz  "Xen"
2:      .balign 4
3:      .long   _start
4:

.text
.globl _start
_start:
        mov     $stack_top, %esp
        push    %ebx
        call    pvh_main

.bss
.balign 16
        .skip   4096
stack_top:
