/* The local APIC in xAPIC mode, and the I/O APIC (SDM 3A 10; Intel 82093AA data sheet). */
#pragma once

#include <stdint.h>

#include "lib/interrupts.h"
#include "lib/io.h"

#define APIC_BASE 0xfee00000
#define APIC_ID 0x020
#define APIC_TPR 0x080
#define APIC_PPR 0x0a0
#define APIC_EOI 0x0b0
#define APIC_SVR 0x0f0
#define APIC_ISR 0x100
#define APIC_ICR_LOW 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3e0

#define SVR_ENABLE 0x100
#define SPURIOUS_VECTOR 0xff

/* Delivery modes, for the ICR and the LVTs. */
#define DELIVER_FIXED 0x000
#define DELIVER_NMI 0x400
#define DELIVER_INIT 0x500
#define DELIVER_STARTUP 0x600
#define DELIVER_EXTINT 0x700

#define ICR_PENDING 0x01000
#define ICR_ASSERT 0x04000
#define ICR_SELF 0x40000
#define ICR_ALL_BUT_SELF 0xc0000

#define TIMER_PERIODIC 0x20000
#define TIMER_TSC_DEADLINE 0x40000
#define TIMER_DIVIDE_BY_1 0xb

static inline uint32_t apic_read(unsigned offset)
{
    return mmio_read32(APIC_BASE + offset);
}

static inline void apic_write(unsigned offset, uint32_t value)
{
    mmio_write32(APIC_BASE + offset, value);
}

static inline unsigned apic_id(void)
{
    return apic_read(APIC_ID) >> 24;
}

static inline void apic_enable(void)
{
    apic_write(APIC_SVR, SVR_ENABLE | SPURIOUS_VECTOR);
    apic_write(APIC_TPR, 0);
}

static inline void apic_eoi(void)
{
    apic_write(APIC_EOI, 0);
}

/* Virtual wire mode: what the 8259s say comes through the pin LINT0 (MultiProcessor Specification
 * 3.6.2.2).  Firmware leaves it so; nothing else does. */
static inline void apic_virtual_wire(void)
{
    apic_enable();
    apic_write(APIC_LVT_LINT0, DELIVER_EXTINT);
}

/* Sends an interrupt.  `command` is a vector, a delivery mode and perhaps a shorthand; without a
 * shorthand it goes to the processor with that APIC ID. */
static inline void apic_send(unsigned id, uint32_t command)
{
    while (apic_read(APIC_ICR_LOW) & ICR_PENDING)
        __asm__ volatile("pause");
    apic_write(APIC_ICR_HIGH, id << 24);
    apic_write(APIC_ICR_LOW, command | ICR_ASSERT);
}

/* The I/O APIC: an index register and a window.  Each pin has an entry of two registers. */
#define IOAPIC_BASE 0xfec00000
#define IOAPIC_ENTRY 0x10
#define IOAPIC_MASKED 0x10000

static inline uint32_t ioapic_read(unsigned index)
{
    mmio_write32(IOAPIC_BASE, index);
    return mmio_read32(IOAPIC_BASE + 0x10);
}

static inline void ioapic_write(unsigned index, uint32_t value)
{
    mmio_write32(IOAPIC_BASE, index);
    mmio_write32(IOAPIC_BASE + 0x10, value);
}

/* Leads a pin, edge-triggered and active high as ISA interrupts are, to a vector of a processor. */
static inline void ioapic_route(unsigned pin, unsigned vector, unsigned id)
{
    ioapic_write(IOAPIC_ENTRY + 2 * pin, IOAPIC_MASKED);
    ioapic_write(IOAPIC_ENTRY + 2 * pin + 1, id << 24);
    ioapic_write(IOAPIC_ENTRY + 2 * pin, vector);
}
