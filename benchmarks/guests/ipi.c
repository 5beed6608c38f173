/* ipi [count]: two processors, which send each other an interrupt in turn and sleep in between.
 * The time of each round is noted; after so many of them comes one write to the stop port; over and
 * over. */

#include "lib/apic.h"
#include "lib/arguments.h"
#include "lib/cpu.h"
#include "lib/descriptors.h"
#include "lib/exit.h"
#include "lib/pic.h"
#include "lib/smp.h"

#define PING 0x41
#define PONG 0x42
#define MAX_ROUNDS 1000

/* In TSC ticks, from before the one interrupt is sent until the answer was handled.  Read by the
 * benchmark. */
uint64_t rounds[MAX_ROUNDS];

static unsigned home, partner; /* APIC IDs */
static volatile unsigned ready, pongs;

INTERRUPT static void on_ping(struct interrupted *at)
{
    (void)at;
    apic_eoi();
    apic_send(home, PONG);
}

INTERRUPT static void on_pong(struct interrupted *at)
{
    (void)at;
    pongs++;
    apic_eoi();
}

void ap_main(unsigned number)
{
    (void)number;
    apic_enable();
    partner = apic_id();
    ready = 1;
    for (;;)
        wait_for_interrupt();
}

int main(int argc, char **argv)
{
    unsigned count = argument(argc, argv, 1, 100);

    if (count > MAX_ROUNDS)
        return 1;
    load_descriptors();
    load_exceptions();
    set_handler(PING, on_ping);
    set_handler(PONG, on_pong);
    pic_init(0x20);
    apic_enable();
    home = apic_id();
    if (start_aps(1) != 1)
        return 2;
    while (!ready)
        __asm__ volatile("pause");
    for (;;) {
        pongs = 0;
        for (unsigned round = 0; round < count; round++) {
            uint64_t start = rdtsc();
            apic_send(partner, PING);
            while (pongs <= round)
                wait_for_interrupt();
            rounds[round] = rdtsc() - start;
        }
        outb(DEBUG_EXIT_PORT, 0);
    }
}
