/* The local APIC's timer in its three modes: it counts down once, it counts down again and again,
 * or it waits until the time stamp counter reaches a deadline (SDM 3A 10.5.4).
 *
 * Exit codes: 0, 1 a one-shot timer did not stop, 2 a periodic one did not go on, 3 the deadline
 * came early or is still there. */

#include "lib/apic.h"
#include "lib/cpu.h"
#include "lib/pic.h"
#include "lib/print.h"

#define VECTOR 0x40
#define COUNT 1000000
#define PERIODS 5
#define LOOKS 1000
#define DEADLINE 1000000 /* TSC ticks from now */

#define MSR_TSC_DEADLINE 0x6e0
#define CPUID_TSC_DEADLINE (1 << 24) /* leaf 1, ECX */

static volatile unsigned fired;

INTERRUPT static void on_timer(struct interrupted *at)
{
    (void)at;
    fired++;
    apic_eoi();
}

static void wait_for(unsigned count)
{
    while (fired < count)
        wait_for_interrupt();
}

static int one_shot(void)
{
    fired = 0;
    apic_write(APIC_LVT_TIMER, VECTOR);
    apic_write(APIC_TIMER_INITIAL, COUNT);
    wait_for(1);
    return apic_read(APIC_TIMER_CURRENT) == 0;
}

static int periodic(void)
{
    fired = 0;
    apic_write(APIC_LVT_TIMER, TIMER_PERIODIC | VECTOR);
    apic_write(APIC_TIMER_INITIAL, COUNT);
    wait_for(PERIODS);
    uint32_t current = 0;
    /* It is 0 as long as the end of a period waits to be seen. */
    for (int look = 0; look < LOOKS && current == 0; look++)
        current = apic_read(APIC_TIMER_CURRENT);
    apic_write(APIC_TIMER_INITIAL, 0); /* stops it */
    return current > 0 && current <= COUNT;
}

static int tsc_deadline(void)
{
    fired = 0;
    apic_write(APIC_LVT_TIMER, TIMER_TSC_DEADLINE | VECTOR);
    __asm__ volatile("mfence"); /* the LVT is memory, the deadline an MSR: keep the order */
    uint64_t deadline = rdtsc() + DEADLINE;
    write_msr(MSR_TSC_DEADLINE, deadline);
    do { /* a last tick of the periodic timer may have been waiting */
        wait_for_interrupt();
    } while (fired < 2 && read_msr(MSR_TSC_DEADLINE) != 0);
    return rdtsc() >= deadline && read_msr(MSR_TSC_DEADLINE) == 0;
}

int main(void)
{
    load_exceptions();
    set_handler(VECTOR, on_timer);
    pic_init(0x20);
    apic_enable();
    apic_write(APIC_TIMER_DIVIDE, TIMER_DIVIDE_BY_1);

    if (!one_shot())
        return 1;
    if (!periodic())
        return 2;
    int offered = (cpuid(1, 0).ecx & CPUID_TSC_DEADLINE) != 0;
    if (offered && !tsc_deadline())
        return 3;
    print("LAPIC timer: one-shot, periodic (%u), TSC deadline%s\n", PERIODS,
          offered ? "" : " not offered");
    return 0;
}
