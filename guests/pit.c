/* The oldest clock of the PC: the 8254 timer ticks, the 8259 interrupt controller asks the CPU, and
 * the handler counts.  Exit codes: 0, 1 the timer's interrupt was not the one in service, 2 it still
 * was after the EOI, 3 the counter does not count. */

#include "lib/apic.h"
#include "lib/pic.h"
#include "lib/pit.h"
#include "lib/print.h"

#define VECTOR 0x20
#define HZ 1000
#define TICKS 10

static volatile unsigned ticks, wrong;

INTERRUPT static void on_tick(struct interrupted *at)
{
    (void)at;
    wrong |= pic_read(PIC_MASTER, OCW3_READ_ISR) != 1;
    ticks++;
    pic_eoi(0);
}

int main(void)
{
    load_exceptions();
    set_handler(VECTOR, on_tick);
    apic_virtual_wire();
    pic_init(VECTOR);

    pit_start(0, PIT_PERIODIC, PIT_HZ / HZ);
    pic_mask(0xfffe);
    while (ticks < TICKS)
        wait_for_interrupt();
    pic_mask(0xffff);

    outb(PIT_CONTROL, 0); /* latch channel 0's count, then read it */
    unsigned count = inb(PIT_CONTROL - 3);
    count |= inb(PIT_CONTROL - 3) << 8;
    if (wrong || pic_read(PIC_MASTER, OCW3_READ_ISR))
        return wrong ? 1 : 2;
    if (count == 0 || count > PIT_HZ / HZ)
        return 3;
    /* More came meanwhile where an exit takes longer than a tick. */
    print("PIT: %u ticks at %u Hz through the 8259\n", TICKS, HZ);
    return 0;
}
