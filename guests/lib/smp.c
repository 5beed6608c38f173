#include "lib/smp.h"

#include <stdint.h>

#include "lib/apic.h"
#include "lib/cpu.h"
#include "lib/pit.h"

extern const char ap_start[], ap_end[]; /* lib/start_ap.S */
extern char ap_page[];
extern uint64_t ap_cr3;
extern struct table_register ap_idt;
extern volatile uint32_t ap_next;

char ap_stacks[MAX_CPUS][4096] __attribute__((aligned(16))); /* that of number n ends at [n] */

static unsigned started(void)
{
    return ap_next - 1;
}

static void wait_for(unsigned wanted, unsigned milliseconds)
{
    while (milliseconds-- && started() < wanted)
        pit_wait(1000);
}

unsigned start_aps(unsigned wanted)
{
    for (const char *byte = ap_start; byte < ap_end; byte++)
        ap_page[byte - ap_start] = *byte;
    ap_cr3 = read_cr3();
    __asm__ volatile("sidt %0" : "=m"(ap_idt));

    uint32_t sipi = ICR_ALL_BUT_SELF | DELIVER_STARTUP | (uintptr_t)ap_page >> 12;
    apic_send(0, ICR_ALL_BUT_SELF | DELIVER_INIT);
    pit_wait(10000);
    apic_send(0, sipi);
    wait_for(wanted, 2);
    if (started() < wanted) /* the first may get lost; a second does nothing to who runs already */
        apic_send(0, sipi);
    wait_for(wanted, 1000);
    return started();
}
