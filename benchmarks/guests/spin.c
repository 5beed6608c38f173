/* spin [ring]: a loop without end, without exits, and with interrupts off. */

#include "lib/arguments.h"
#include "lib/user.h"

USER_TEXT static uint64_t spin(uint64_t first, uint64_t second)
{
    for (;;)
        __asm__ volatile("");
    return first + second; /* never */
}

int main(int argc, char **argv)
{
    load_user();
    if (argument(argc, argv, 1, 0) == 3)
        call_user(spin, 0, 0);
    for (;;)
        __asm__ volatile("");
}
