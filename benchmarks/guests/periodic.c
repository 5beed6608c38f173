/* periodic [count [period]]: the local APIC's timer with that period, in ns, and a processor that
 * sleeps in between.  The time of each interrupt is noted; after so many of them comes one write
 * to the stop port, and then it begins anew. */

#include "lib/apic.h"
#include "lib/arguments.h"
#include "lib/cpu.h"
#include "lib/descriptors.h"
#include "lib/exit.h"
#include "lib/pic.h"

#define VECTOR 0x40
#define MAX_TICKS 20000

/* TSC values.  Read by the benchmark. */
uint64_t begin, ticks[MAX_TICKS];
static unsigned count, taken;

INTERRUPT static void on_tick(struct interrupted *at)
{
    (void)at;
    ticks[taken++] = rdtsc();
    apic_eoi();
}

int main(int argc, char **argv)
{
    uint32_t period;

    count = argument(argc, argv, 1, 1000);
    period = argument(argc, argv, 2, 1000000);
    if (count > MAX_TICKS)
        return 1;
    load_descriptors();
    load_exceptions();
    set_handler(VECTOR, on_tick);
    pic_init(0x20);
    apic_enable();
    apic_write(APIC_TIMER_DIVIDE, TIMER_DIVIDE_BY_1); /* its clock has 1 GHz */
    apic_write(APIC_LVT_TIMER, TIMER_PERIODIC | VECTOR);
    for (;;) {
        taken = 0;
        begin = rdtsc();
        apic_write(APIC_TIMER_INITIAL, period);
        while (taken < count)
            wait_for_interrupt();
        apic_write(APIC_TIMER_INITIAL, 0);
        outb(DEBUG_EXIT_PORT, 0);
    }
}
