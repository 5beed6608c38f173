/* Halts with interrupts off.  Nothing can wake this vCPU but an NMI: the guest is done. */

#include "lib/exit.h"
#include "lib/print.h"

int main(void)
{
    print("halting for good\n");
    halt_forever();
}
