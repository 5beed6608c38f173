/* A position-independent executable: linked at 0, placed wherever the VMM has room.
 *
 * Code finds its data relative to RIP and does not mind.  Pointers in data do: the linker leaves a
 * relocation for each, and lib/start_pie.c applies them before main. */

#include "lib/print.h"

static const char *volatile lines[] = {
    "Hello from a position-independent executable!\n",
    "Linked at 0x0, placed at ",
};

int main(void)
{
    __attribute__((visibility("hidden"))) extern char image[]; /* lib/elf64pie.ld */

    print("%s%s0x%lx.\n", lines[0], lines[1], (unsigned long)image);
    return 0;
}
