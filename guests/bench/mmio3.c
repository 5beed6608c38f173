/* mmio3 [count [address]]: a loop of 32-bit stores in ring 3, to a page opened to it. */

#include "lib/arguments.h"
#include "lib/user.h"

USER_TEXT static uint64_t loop(uint64_t count, uint64_t address)
{
    if (count)
        __asm__ volatile("1: movl %%eax, (%1)\n\t"
                         "dec %0\n\t"
                         "jnz 1b"
                         : "+r"(count)
                         : "r"(address), "a"(0)
                         : "memory");
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t address = argument(argc, argv, 2, 0xd0000000);

    load_user();
    allow_user_page(address);
    return call_user(loop, argument(argc, argv, 1, 1000), address);
}
