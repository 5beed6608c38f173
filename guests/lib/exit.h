/* How a guest ends: it gives the VMM its exit code, and in case no one listens it halts. */
#pragma once

#include "lib/io.h"

#define DEBUG_EXIT_PORT 0xf4 /* isa-debug-exit, where QEMU users put it by habit */

static inline _Noreturn void halt_forever(void)
{
    for (;;) /* an NMI wakes even a vCPU that halted with interrupts off */
        __asm__ volatile("cli; hlt");
}

static inline _Noreturn void exit_guest(uint8_t code)
{
    outb(DEBUG_EXIT_PORT, code);
    halt_forever();
}
