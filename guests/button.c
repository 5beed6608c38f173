/* The power button: ACPI reports it by an event in PM1_STS and by the system control interrupt, a
 * level that comes through the I/O APIC.  The guest then switches itself off.
 *
 * Exit codes: 1 no ACPI, 2 another event, 3 it was not switched off. */

#include "lib/acpi.h"
#include "lib/apic.h"
#include "lib/pic.h"
#include "lib/print.h"

#define VECTOR 0x50
#define ENTRY_LEVEL 0x8000

static uint16_t events;
static volatile uint16_t seen;

INTERRUPT static void on_event(struct interrupted *at)
{
    (void)at;
    seen = inw(events);
    outw(events, seen); /* what is written as 1 is taken note of: the level falls */
    apic_eoi();
}

int main(void)
{
    const struct acpi_fadt *fadt = (const void *)acpi_find("FACP");
    if (!fadt)
        return 1;
    int type = acpi_s5_type((const void *)fadt->x_dsdt);
    events = fadt->pm1a_events;
    load_exceptions();
    set_handler(VECTOR, on_event);
    pic_init(0x20);
    apic_enable();
    ioapic_route(fadt->sci, VECTOR | ENTRY_LEVEL, apic_id());
    outw(events, 0xffff);
    outw(events + 2, PM1_POWER_BUTTON);

    print("waiting for the power button\n");
    while (!seen)
        wait_for_interrupt();
    if (!(seen & PM1_POWER_BUTTON) || inw(events))
        return 2;
    print("the power button was pressed\n");
    outw(fadt->pm1a_control, type << PM1_SLEEP_TYPE_SHIFT | PM1_SLEEP);
    return 3;
}
