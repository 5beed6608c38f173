/* Spins for ever in ring 3 with interrupts off, without a single VM exit and at the processor's own
 * speed whatever the host.  Only a signal that makes KVM_RUN return can stop it. */

#include "lib/print.h"
#include "lib/user.h"

USER_TEXT static _Noreturn uint64_t spin(uint64_t first, uint64_t second)
{
    (void)first, (void)second;
    for (;;)
        __asm__ volatile("");
}

int main(void)
{
    load_user();
    print("spinning in ring 3\n");
    call_user(spin, 0, 0);
    return 1;
}
