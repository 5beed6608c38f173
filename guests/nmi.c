/* The non-maskable interrupt: it comes with interrupts off, and while one is handled the next waits
 * for IRET (SDM 3A 6.7.1).  The local APIC sends both.
 *
 * Exit codes: 0, 1 one came inside the other, 2 it did not come. */

#include "lib/apic.h"
#include "lib/pic.h"
#include "lib/print.h"

#define VECTOR_NMI 2

static volatile unsigned count, depth, nested;

INTERRUPT static void on_nmi(struct interrupted *at)
{
    (void)at;
    nested |= depth++;
    if (++count == 1) {
        apic_send(apic_id(), DELIVER_NMI);
        let_interrupts_come(&count, 2); /* it must not */
    }
    depth--;
}

int main(void)
{
    load_exceptions();
    set_handler(VECTOR_NMI, on_nmi);
    pic_init(0x20);
    apic_enable();

    disable_interrupts();
    apic_send(apic_id(), DELIVER_NMI);
    let_interrupts_come(&count, 2);
    if (nested)
        return 1;
    if (count != 2)
        return 2;
    print("NMI: %u with interrupts off, the second after the first\n", count);
    return 0;
}
