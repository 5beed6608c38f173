/* A triple fault: UD2 raises #UD, an empty IDT has no gate for it (#GP), none for that (#DF), and
 * none for that: the processor shuts down, which a PC's chipset turns into a reset. */

#include "lib/cpu.h"
#include "lib/print.h"

int main(void)
{
    static const struct table_register empty = {.limit = 0, .base = 0};

    print("loading an empty IDT\n");
    __asm__ volatile("lidt %0\n\t"
                     "ud2"
                     :
                     : "m"(empty));
    return 1;
}
