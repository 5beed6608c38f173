/* The two 8259 interrupt controllers of a PC (Intel 8259A data sheet). */
#pragma once

#include <stdint.h>

#include "lib/io.h"

#define PIC_MASTER 0x20
#define PIC_SLAVE 0xa0
#define PIC_CASCADE 2 /* the master's input that the slave drives */

#define ICW1_INIT 0x10
#define ICW1_ICW4 0x01
#define ICW4_8086 0x01

#define OCW2_EOI 0x20
#define OCW3_READ_IRR 0x0a
#define OCW3_READ_ISR 0x0b

static inline void pic_mask(uint16_t mask) /* a bit that is set keeps its IRQ out */
{
    outb(PIC_MASTER + 1, mask);
    outb(PIC_SLAVE + 1, mask >> 8);
}

/* IRQ 0 to 15 become the vectors from `vector` on; all are masked. */
static inline void pic_init(uint8_t vector)
{
    outb(PIC_MASTER, ICW1_INIT | ICW1_ICW4);
    outb(PIC_MASTER + 1, vector);
    outb(PIC_MASTER + 1, 1 << PIC_CASCADE);
    outb(PIC_MASTER + 1, ICW4_8086);
    outb(PIC_SLAVE, ICW1_INIT | ICW1_ICW4);
    outb(PIC_SLAVE + 1, vector + 8);
    outb(PIC_SLAVE + 1, PIC_CASCADE);
    outb(PIC_SLAVE + 1, ICW4_8086);
    pic_mask(0xffff);
}

static inline void pic_eoi(unsigned irq)
{
    if (irq >= 8)
        outb(PIC_SLAVE, OCW2_EOI);
    outb(PIC_MASTER, OCW2_EOI);
}

static inline uint8_t pic_read(uint16_t pic, uint8_t what) /* OCW3_READ_IRR or OCW3_READ_ISR */
{
    outb(pic, what);
    return inb(pic);
}
