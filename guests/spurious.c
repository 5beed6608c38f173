/* A spurious interrupt: the 8259s ask for the CPU, and by the time it answers the reason is gone.
 * They then give the vector of their lowest input, 7 or 15, with nothing in service: a handler for
 * these looks before it sends an EOI (Intel 8259A data sheet, "edge and level triggered modes").
 *
 * Here the clock asks (IRQ 8, through the slave), and is masked before interrupts come on.
 * Exit codes: 0, 1 the interrupt was not spurious, 2 none came. */

#include "lib/apic.h"
#include "lib/cmos.h"
#include "lib/pic.h"
#include "lib/print.h"

#define VECTOR 0x20
#define IRQ 8
#define RATE_1024_HZ 6

static volatile unsigned spurious, genuine, irq;

INTERRUPT static void on_irq7(struct interrupted *at)
{
    (void)at;
    if (pic_read(PIC_MASTER, OCW3_READ_ISR) & 0x80) {
        genuine++;
        pic_eoi(7);
        return;
    }
    spurious++;
    irq = 7;
}

INTERRUPT static void on_irq15(struct interrupted *at)
{
    (void)at;
    if (pic_read(PIC_SLAVE, OCW3_READ_ISR) & 0x80) {
        genuine++;
        pic_eoi(15);
        return;
    }
    spurious++;
    irq = 15;
    pic_eoi(PIC_CASCADE); /* the master took the cascade for an interrupt, and wants its EOI */
}

INTERRUPT static void on_clock(struct interrupted *at)
{
    (void)at;
    genuine++;
    pic_eoi(IRQ);
}

int main(void)
{
    load_exceptions();
    set_handler(VECTOR + 7, on_irq7);
    set_handler(VECTOR + 8, on_clock);
    set_handler(VECTOR + 15, on_irq15);
    apic_virtual_wire();
    pic_init(VECTOR);
    pic_mask(~(1 << IRQ | 1 << PIC_CASCADE));

    cmos_write(RTC_A, RTC_A_RUN | RATE_1024_HZ);
    cmos_read(RTC_C);
    cmos_write(RTC_B, RTC_B_24_HOURS | RTC_PERIODIC);
    while (!(pic_read(PIC_SLAVE, OCW3_READ_IRR) & 1))
        ;
    pic_mask(~(1 << PIC_CASCADE));
    enable_interrupts();
    let_interrupts_come(&spurious, 1);
    disable_interrupts();
    cmos_write(RTC_B, RTC_B_24_HOURS);

    if (genuine)
        return 1;
    if (!spurious)
        return 2;
    print("spurious: IRQ %u with nothing in service\n", irq);
    return 0;
}
