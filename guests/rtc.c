/* The real-time clock's alarm: half a second before a new millennium the guest sets it for midnight
 * and sleeps.  IRQ 8 comes through both 8259s.
 *
 * Exit codes: 0, 1 the interrupt was not the alarm's, 2 the clock shows another time. */

#include "lib/apic.h"
#include "lib/cmos.h"
#include "lib/pic.h"
#include "lib/print.h"

#define VECTOR 0x20
#define IRQ 8

static volatile unsigned flags;

INTERRUPT static void on_alarm(struct interrupted *at)
{
    (void)at;
    flags |= cmos_read(RTC_C); /* reading it is the acknowledgement */
    pic_eoi(IRQ);
}

int main(void)
{
    static const struct {
        uint8_t index, before, after; /* BCD */
    } time[] = {
        {RTC_CENTURY, 0x19, 0x20}, {RTC_YEAR, 0x99, 0x00},  {RTC_MONTH, 0x12, 0x01},
        {RTC_DAY, 0x31, 0x01},     {RTC_HOURS, 0x23, 0x00}, {RTC_MINUTES, 0x59, 0x00},
        {RTC_SECONDS, 0x59, 0x00},
    };
    unsigned char shown[7];

    load_exceptions();
    set_handler(VECTOR + IRQ, on_alarm);
    apic_virtual_wire();
    pic_init(VECTOR);

    /* The first update comes half a second after the divider is let go. */
    cmos_write(RTC_B, RTC_B_SET | RTC_B_24_HOURS);
    cmos_write(RTC_A, RTC_A_RESET);
    for (int i = 0; i < 7; i++)
        cmos_write(time[i].index, time[i].before);
    cmos_write(RTC_HOURS_ALARM, 0x00);
    cmos_write(RTC_MINUTES_ALARM, 0x00);
    cmos_write(RTC_SECONDS_ALARM, 0x00);
    cmos_write(RTC_A, RTC_A_RUN);
    cmos_read(RTC_C);
    cmos_write(RTC_B, RTC_B_24_HOURS | RTC_ALARM);
    pic_mask(~(1 << IRQ | 1 << PIC_CASCADE));

    while (!flags)
        wait_for_interrupt();
    if (!(flags & RTC_ALARM))
        return 1;
    for (int i = 0; i < 7; i++) {
        shown[i] = cmos_read(time[i].index);
        if (shown[i] != time[i].after)
            return 2;
    }
    cmos_write(RTC_B, RTC_B_24_HOURS);
    print("RTC: alarm at midnight, %x-%x-%x\n", shown[0] << 8 | shown[1], shown[2], shown[3]);
    return 0;
}
