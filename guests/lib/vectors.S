/* One stub a vector.  The CPU pushes SS, RSP, RFLAGS, CS, RIP and for some vectors an error code;
 * the stub evens that out, adds the vector and the registers, and calls on_exception(frame). */

.set HAS_ERROR_CODE, 0x60227d00 /* bits 8, 10-14, 17, 21, 29, 30 */

.balign 16
.globl vectors
vectors:
.set vector, 0
.rept 32
        .balign 16
        .if !((HAS_ERROR_CODE >> vector) & 1)
        pushq   $0
        .endif
        pushq   $vector
        jmp     save_and_call
        .set vector, vector + 1
.endr

.globl save_and_call    /* for stubs of a guest's own, which push the same two */
save_and_call:
        .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
        push    %\register
        .endr
        cld
        mov     %rsp, %rdi
        call    on_exception
        .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
        pop     %\register
        .endr
        add     $16, %rsp       /* the vector and the error code */
        iretq
