/* 32-bit protected mode: the same C, compiled with -m32.  Segments are flat (base 0, limit 4 GiB),
 * paging is off, and an address is a physical address. */

#include "lib/print.h"

int main(int argc, char **argv)
{
    print("Hello from protected mode!\n");
    for (int i = 1; i < argc; i++)
        print("argv[%d] = %s\n", i, argv[i]);
    return 0;
}
