/* Interrupt priority is the vector's upper four bits, its class.  A handler that turns interrupts on
 * is interrupted by a higher class at once, and by its own class only after its EOI
 * (SDM 3A 10.8.3).  The events are written down as they come.
 *
 * Exit codes: 0, 1 another order, 2 the processor priority register did not show the class that was
 * being served. */

#include "lib/apic.h"
#include "lib/pic.h"
#include "lib/print.h"

#define LOW 0x41
#define LOW_TOO 0x42
#define HIGH 0x51

static char events[16];
static volatile unsigned happened, wrong_priority;

static void note(char event)
{
    events[happened++ & 15] = event;
}

static void expect_priority(unsigned vector)
{
    wrong_priority |= (apic_read(APIC_PPR) & 0xf0) != (vector & 0xf0);
}

INTERRUPT static void on_high(struct interrupted *at)
{
    (void)at;
    note('H');
    expect_priority(HIGH);
    apic_eoi();
}

INTERRUPT static void on_low_too(struct interrupted *at)
{
    (void)at;
    note('2');
    apic_eoi();
}

INTERRUPT static void on_low(struct interrupted *at)
{
    (void)at;
    note('(');
    expect_priority(LOW);
    enable_interrupts();
    apic_send(0, ICR_SELF | LOW_TOO);
    apic_send(0, ICR_SELF | HIGH);
    let_interrupts_come(&happened, 3); /* only one of the two may */
    disable_interrupts();
    note(')');
    apic_eoi();
}

int main(void)
{
    load_exceptions();
    set_handler(LOW, on_low);
    set_handler(LOW_TOO, on_low_too);
    set_handler(HIGH, on_high);
    pic_init(0x20);
    apic_enable();

    apic_send(0, ICR_SELF | LOW);
    enable_interrupts();
    let_interrupts_come(&happened, 4);
    disable_interrupts();

    print("priority: %s\n", events);
    if (wrong_priority)
        return 2;
    const char *expected = "(H)2";
    for (int i = 0; i < 5; i++)
        if (events[i] != expected[i])
            return 1;
    return 0;
}
