/* out3 [count [port]]: a loop of OUT in ring 3, which the TSS's I/O bitmap allows. */

#include "lib/arguments.h"
#include "lib/user.h"

USER_TEXT static uint64_t loop(uint64_t count, uint64_t port)
{
    if (count)
        __asm__ volatile("1: outb %%al, %%dx\n\t"
                         "dec %0\n\t"
                         "jnz 1b"
                         : "+r"(count)
                         : "a"(0), "d"(port));
    return 0;
}

int main(int argc, char **argv)
{
    load_user();
    allow_user_ports();
    return call_user(loop, argument(argc, argv, 1, 1000), argument(argc, argv, 2, 0x80));
}
