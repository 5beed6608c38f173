/* Arguments: argc in RDI and argv in RSI, strings in guest memory, all placed there by the VMM.
 * The exit code is the number of arguments after the guest's name. */

#include "lib/print.h"

int main(int argc, char **argv)
{
    print("argc = %d\n", argc);
    for (int i = 0; i < argc; i++)
        print("argv[%d] = %s\n", i, argv[i]);
    return argc - 1;
}
