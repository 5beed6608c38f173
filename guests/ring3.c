/* Into ring 3 and back: IRETQ goes down, an exception comes up, and IRETQ returns once more.
 *
 * Ring 3 adds two numbers, then tries HLT, which is ring 0's alone: #GP.  The handler steps over it
 * and goes back down; the next instruction, UD2, is the end.  (What lib/user.h offers the other
 * guests as call_user is this, wrapped up.) */

#include "lib/exceptions.h"
#include "lib/exit.h"
#include "lib/print.h"
#include "lib/user.h"

USER_TEXT __attribute__((naked)) static void user_code(void)
{
    __asm__("mov $40, %eax\n\t"
            "add $2, %eax\n\t"
            "hlt\n\t"
            "add $1, %eax\n\t"
            "ud2");
}

void on_exception(struct frame *frame)
{
    print("%s in ring %lu, error code %lu, rax = %lu\n", exception_name(frame->vector),
          frame->cs & 3, frame->error_code, frame->rax);
    if (frame->vector == VECTOR_GP)
        frame->rip += 1; /* HLT is one byte long */
    else
        exit_guest(frame->vector == VECTOR_UD && frame->rax == 43 ? 0 : 1);
}

int main(void)
{
    load_descriptors(); /* user segments, and a TSS that says where the stack for ring 0 is */
    load_exceptions();
    allow_user_page((uint64_t)user_code);

    print("leaving ring 0\n");
    __asm__ volatile("pushq %0\n\t" /* SS */
                     "pushq %1\n\t" /* RSP */
                     "pushq $2\n\t" /* RFLAGS: interrupts off */
                     "pushq %2\n\t" /* CS: its low two bits become the privilege level */
                     "pushq %3\n\t" /* RIP */
                     "iretq"
                     :
                     : "i"(USER_DATA_SELECTOR), "r"(user_stack_top), "i"(USER_CODE_SELECTOR),
                       "r"(user_code));
    __builtin_unreachable();
}
