/* The first guest: 64-bit code that prints a line.
 *
 * It is entered twice over: by pykvm straight in long mode (lib/start.c), and, as this one file also
 * carries a PVH note (lib/pvh.S), by QEMU, Xen or Firecracker in 32-bit mode. */

#include "lib/print.h"

int main(void)
{
    print("Hello from long mode!\n");
    return 0;
}
