/* Spins for ever in ring 0 with interrupts off: only the VMM can stop it, by a signal that makes
 * KVM_RUN return. */

#include "lib/print.h"

int main(void)
{
    print("spinning in ring 0\n");
    __asm__ volatile("cli\n"
                     "1: jmp 1b");
    __builtin_unreachable();
}
