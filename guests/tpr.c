/* The task priority keeps out interrupts of its class and below.  It is one register with two names:
 * CR8 holds the class, the local APIC's TPR the class and a sub-class (SDM 3A 10.8.6).
 *
 * Exit codes: 0, 1 CR8 and TPR differ, 2 an interrupt came in spite of it, 3 one was kept out that
 * had to come. */

#include "lib/apic.h"
#include "lib/cpu.h"
#include "lib/pic.h"
#include "lib/print.h"

#define BELOW 0x55
#define ABOVE 0x65
#define CLASS 5

READ_WRITE_CR(8)

static volatile unsigned below, above;

INTERRUPT static void on_below(struct interrupted *at)
{
    (void)at;
    below++;
    apic_eoi();
}

INTERRUPT static void on_above(struct interrupted *at)
{
    (void)at;
    above++;
    apic_eoi();
}

int main(void)
{
    load_exceptions();
    set_handler(BELOW, on_below);
    set_handler(ABOVE, on_above);
    pic_init(0x20);
    apic_enable();

    write_cr8(CLASS);
    if (apic_read(APIC_TPR) != CLASS << 4)
        return 1;
    enable_interrupts();
    apic_send(0, ICR_SELF | BELOW);
    apic_send(0, ICR_SELF | ABOVE);
    let_interrupts_come(&above, 1);
    if (below || !above)
        return below ? 2 : 3;

    apic_write(APIC_TPR, (CLASS - 1) << 4 | 1);
    let_interrupts_come(&below, 1);
    disable_interrupts();
    if (!below)
        return 3;
    if (read_cr8() != CLASS - 1)
        return 1;
    print("TPR: class %u waited for CR8 to fall to %u\n", CLASS, CLASS - 1);
    return 0;
}
