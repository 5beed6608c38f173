/* The 8254 timer of a PC (Intel 8254 data sheet).  Channel 0 drives IRQ 0; channel 2's gate and
 * output are in port 0x61. */
#pragma once

#include <stdint.h>

#include "lib/io.h"

#define PIT_HZ 1193182
#define PIT_CONTROL 0x43
#define PIT_ONE_SHOT 0x30 /* mode 0, count in two bytes */
#define PIT_PERIODIC 0x34 /* mode 2 */

#define PORT61 0x61
#define PORT61_GATE2 0x01
#define PORT61_OUT2 0x20

static inline void pit_start(unsigned channel, uint8_t mode, uint16_t count)
{
    outb(PIT_CONTROL, channel << 6 | mode);
    outb(PIT_CONTROL - 3 + channel, count);
    outb(PIT_CONTROL - 3 + channel, count >> 8);
}

/* Waits without interrupts, 54 ms at the most. */
static inline void pit_wait(unsigned microseconds)
{
    outb(PORT61, 0);
    pit_start(2, PIT_ONE_SHOT, microseconds * (PIT_HZ / 1000) / 1000);
    outb(PORT61, PORT61_GATE2);
    while (!(inb(PORT61) & PORT61_OUT2))
        ;
}
