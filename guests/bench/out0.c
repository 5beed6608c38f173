/* out0 [count [port]]: a loop of OUT in ring 0, one VM exit a turn. */

#include <stdint.h>

#include "lib/arguments.h"

int main(int argc, char **argv)
{
    uint32_t count = argument(argc, argv, 1, 1000);
    uint16_t port = argument(argc, argv, 2, 0x80);

    if (count)
        __asm__ volatile("1: outb %%al, %%dx\n\t"
                         "dec %0\n\t"
                         "jnz 1b"
                         : "+r"(count)
                         : "a"(0), "d"(port));
    return 0;
}
