/* The ELF entry point.  The VMM enters as if it had called this function: in long mode with
 * argc in RDI and argv in RSI, in protected mode with both on the stack.  So no assembly. */

#include "lib/exit.h"

int main(int argc, char **argv); /* what it returns is the guest's exit code */

_Noreturn void _start(int argc, char **argv)
{
    exit_guest(main(argc, argv));
}
