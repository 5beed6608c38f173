/* A bad stack: the handlers are all in place, but RSP points where no page is mapped.  PUSH faults,
 * and to deliver the #PF the CPU would have to push too: #DF, and the same again: it shuts down.
 * The IST in the TSS exists so that #DF has a stack that works. */

#include "lib/exceptions.h"
#include "lib/print.h"

int main(void)
{
    load_exceptions();
    print("pushing to an unmapped stack\n");
    __asm__ volatile("mov %0, %%rsp\n\t"
                     "push %%rax"
                     :
                     : "r"(0x700000000000ul)
                     : "memory");
    __builtin_unreachable();
}
