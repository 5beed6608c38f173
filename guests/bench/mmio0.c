/* mmio0 [count [address]]: a loop of 32-bit stores in ring 0, one VM exit a turn. */

#include <stdint.h>

#include "lib/arguments.h"

int main(int argc, char **argv)
{
    uint32_t count = argument(argc, argv, 1, 1000);
    uint64_t address = argument(argc, argv, 2, 0xd0000000);

    if (count)
        __asm__ volatile("1: movl %%eax, (%1)\n\t"
                         "dec %0\n\t"
                         "jnz 1b"
                         : "+r"(count)
                         : "r"(address), "a"(0)
                         : "memory");
    return 0;
}
