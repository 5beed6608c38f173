/* uint64_t call_user(function, first, second)
 *
 * IRETQ leads to ring 3: it takes RIP, CS, RFLAGS, RSP and SS from the stack, and unlike a jump it
 * may load a CS of lower privilege.  The ways back are interrupts, exceptions and SYSCALL; this
 * takes the plainest: when the function returns, ring 3 runs UD2, and #UD ends here. */

#include "lib/descriptors.h"

.globl call_user
call_user:
        push    %rbx
        push    %rbp
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        mov     %rsp, kernel_rsp
        mov     %rdi, %rax
        mov     %rsi, %rdi
        mov     %rdx, %rsi
        movq    $user_return, user_stack_top - 8        /* the return address */

        pushq   $USER_DATA_SELECTOR
        pushq   $user_stack_top - 8
        pushq   $0x2                                    /* RFLAGS: interrupts off */
        pushq   $USER_CODE_SELECTOR
        pushq   %rax
        iretq

/* #UD from ring 3 comes here, on the stack that the TSS names; RAX is still the function's. */
.globl user_returned
user_returned:
        mov     kernel_rsp, %rsp
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %rbp
        pop     %rbx
        ret

.section .user.text, "ax"
user_return:
        ud2

.bss
.balign 8
kernel_rsp:
        .skip   8

.section .user.bss, "aw", @nobits
.balign 16
        .skip   4096
.globl user_stack_top
user_stack_top:
