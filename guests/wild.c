/* A wild access, to a physical address where there is neither memory nor a device.
 *
 *   wild store   (the default) writes there: KVM_EXIT_MMIO that no device answers
 *   wild load    reads there: all ones on a PC
 *   wild jump    runs code there: KVM cannot fetch an instruction and gives up
 *
 * Exit code 1, with a line that says so, if nothing stopped it. */

#include "lib/io.h"
#include "lib/print.h"

#define NOWHERE 0xe0000000

int main(int argc, char **argv)
{
    switch (argc > 1 ? argv[1][0] : 's') {
    case 's':
        print("storing to nowhere\n");
        mmio_write32(NOWHERE, 0xdeadbeef);
        break;
    case 'l':
        print("loading from nowhere\n");
        print("read 0x%x\n", mmio_read32(NOWHERE));
        break;
    case 'j':
        print("jumping to nowhere\n");
        __asm__ volatile("jmp *%0" : : "r"((uint64_t)NOWHERE));
        __builtin_unreachable();
    }
    print("nothing stopped it\n");
    return 1;
}
