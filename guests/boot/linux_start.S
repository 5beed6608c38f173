/* The first instructions of boot/linux.c, at either entry: a stack, and (E|R)SI, which holds the
 * address of the zero page, as its argument. */

.section .start, "ax"
.globl _start
_start:
#ifdef __x86_64__
        lea     stack_top(%rip), %rsp
        mov     %rsi, %rdi
        call    kernel_main
#else
        mov     $stack_top, %esp
        push    %esi
        call    kernel_main
#endif

.bss
.balign 16
        .skip   4096
stack_top:
