/* The high precision event timer: one counter that always runs, and comparators that interrupt when
 * it reaches them (IA-PC HPET specification 1.0a).  Timer 0 takes the 8254's place ("legacy
 * replacement"), which is pin 2 of the I/O APIC.
 *
 * Exit codes: 0, 1 there is no HPET, 2 the counter does not count, 3 an interrupt came early. */

#include "lib/apic.h"
#include "lib/pic.h"
#include "lib/print.h"

#define HPET_BASE 0xfed00000
#define HPET_CAPABILITIES 0x000
#define HPET_PERIOD 0x004 /* of the counter, in femtoseconds */
#define HPET_CONFIGURATION 0x010
#define HPET_COUNTER 0x0f0
#define HPET_TIMER0 0x100
#define HPET_COMPARATOR0 0x108

#define LEGACY_CAPABLE 0x8000
#define ENABLE 0x1
#define LEGACY_REPLACEMENT 0x2
#define TIMER_INTERRUPT 0x04
#define TIMER_IS_PERIODIC 0x08
#define TIMER_SET_VALUE 0x40

#define FEMTOSECONDS 1000000000000000ul
#define VECTOR 0x40
#define PIN 2
#define PERIODS 5
#define LEAD 50 /* milliseconds until the first: the counter must not pass it before it is set */

static volatile unsigned fired;

INTERRUPT static void on_timer(struct interrupted *at)
{
    (void)at;
    fired++;
    apic_eoi();
}

static uint32_t read(unsigned offset)
{
    return mmio_read32(HPET_BASE + offset);
}

static void write(unsigned offset, uint32_t value)
{
    mmio_write32(HPET_BASE + offset, value);
}

static void wait_for(unsigned count)
{
    while (fired < count)
        wait_for_interrupt();
}

int main(void)
{
    uint32_t capabilities = read(HPET_CAPABILITIES), period = read(HPET_PERIOD);
    if (!(capabilities & LEGACY_CAPABLE) || period == 0 || period > 100000000)
        return 1;
    uint32_t hz = FEMTOSECONDS / period, millisecond = hz / 1000;

    load_exceptions();
    set_handler(VECTOR, on_timer);
    pic_init(0x20);
    apic_enable();
    ioapic_route(PIN, VECTOR, apic_id());

    write(HPET_CONFIGURATION, 0); /* halted, the counter can be set */
    write(HPET_COUNTER, 0);
    write(HPET_COUNTER + 4, 0);
    write(HPET_TIMER0, TIMER_INTERRUPT);
    write(HPET_COMPARATOR0, millisecond);
    write(HPET_COMPARATOR0 + 4, 0);
    write(HPET_CONFIGURATION, LEGACY_REPLACEMENT | ENABLE);
    wait_for(1);
    uint32_t once = read(HPET_COUNTER);
    if (once < millisecond)
        return 3;

    /* In periodic mode the comparator takes two writes: when first, then how often. */
    write(HPET_TIMER0, TIMER_INTERRUPT | TIMER_IS_PERIODIC | TIMER_SET_VALUE);
    uint32_t first = read(HPET_COUNTER) + LEAD * millisecond;
    write(HPET_COMPARATOR0, first);
    write(HPET_COMPARATOR0, millisecond);
    fired = 0;
    wait_for(PERIODS);
    uint32_t end = read(HPET_COUNTER);
    write(HPET_CONFIGURATION, 0);
    if (end == once)
        return 2;
    if (end < first + (PERIODS - 1) * millisecond)
        return 3;
    print("HPET: %u timers at %u Hz, one-shot, periodic (%u)\n", (capabilities >> 8 & 31) + 1, hz,
          PERIODS);
    return 0;
}
