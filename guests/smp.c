/* More than one processor: INIT and SIPI wake the others, and then two of them play ping-pong with
 * inter-processor interrupts, both asleep in HLT while they wait.
 *
 * smp.elf [processors]: 2 unless given.
 * Exit codes: 0, 1 not all processors came, 2 a ball was lost. */

#include "lib/apic.h"
#include "lib/arguments.h"
#include "lib/descriptors.h"
#include "lib/pic.h"
#include "lib/print.h"
#include "lib/smp.h"

#define PING 0x41 /* to the partner */
#define PONG 0x42 /* and back */
#define ROUNDS 50

static unsigned home, partner; /* APIC IDs */
static volatile unsigned ready, pings, pongs;

INTERRUPT static void on_ping(struct interrupted *at)
{
    (void)at;
    pings++;
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
    apic_enable();
    if (number == 1)
        partner = apic_id();
    __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
    for (;;)
        wait_for_interrupt();
}

int main(int argc, char **argv)
{
    unsigned processors = argument(argc, argv, 1, 2);

    load_descriptors();
    load_exceptions();
    set_handler(PING, on_ping);
    set_handler(PONG, on_pong);
    pic_init(0x20);
    apic_enable();
    home = apic_id();

    unsigned others = start_aps(processors - 1);
    if (others != processors - 1 || others == 0) {
        print("SMP: %u of %u processors\n", others + 1, processors);
        return 1;
    }
    while (ready < others)
        __asm__ volatile("pause");
    for (unsigned round = 1; round <= ROUNDS; round++) {
        apic_send(partner, PING);
        while (pongs < round)
            wait_for_interrupt();
    }
    if (pings != ROUNDS || pongs != ROUNDS)
        return 2;
    print("SMP: %u processors, %u rounds of ping-pong\n", processors, ROUNDS);
    return 0;
}
