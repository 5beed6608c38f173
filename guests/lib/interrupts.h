/* Interrupt handlers in C (long mode).  GCC gives a function with this attribute the entry and the
 * exit of a handler: every register saved, and IRETQ at the end. */
#pragma once

#include <stdint.h>

#include "lib/exceptions.h"
#include "lib/io.h"

#define INTERRUPT __attribute__((interrupt))

/* What the CPU pushed (SDM 3A 6.14.2). */
struct interrupted {
    uint64_t rip, cs, rflags, rsp, ss;
};

/* Call load_exceptions() first: it loads the IDT. */
static inline void set_handler(unsigned vector, void (*handler)(struct interrupted *))
{
    set_gate(vector, (void (*)(void))handler);
}

static inline void enable_interrupts(void)
{
    __asm__ volatile("sti" : : : "memory");
}

static inline void disable_interrupts(void)
{
    __asm__ volatile("cli" : : : "memory");
}

/* Sleeps until an interrupt was handled.  Call it with interrupts off: STI takes effect after the
 * next instruction, so none can slip in between the caller's test and the HLT. */
static inline void wait_for_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* Gives an interrupt that is due the time to come.  Emulators look for interrupts only now and
 * then; a device access is where all of them do, if it has to be answered. */
static inline void let_interrupts_come(volatile unsigned *count, unsigned wanted)
{
    for (int i = 0; i < 100 && *count < wanted; i++)
        inb(0x80);
}
