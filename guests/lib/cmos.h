/* The MC146818 real-time clock of a PC (Motorola MC146818A data sheet), which drives IRQ 8. */
#pragma once

#include <stdint.h>

#include "lib/io.h"

enum {
    RTC_SECONDS,
    RTC_SECONDS_ALARM,
    RTC_MINUTES,
    RTC_MINUTES_ALARM,
    RTC_HOURS,
    RTC_HOURS_ALARM,
    RTC_WEEKDAY,
    RTC_DAY,
    RTC_MONTH,
    RTC_YEAR,
    RTC_A,
    RTC_B,
    RTC_C,
    RTC_CENTURY = 0x32, /* not the chip's, but every PC's */
};

#define RTC_A_RUN 0x20   /* the divider counts a 32,768 Hz crystal */
#define RTC_A_RESET 0x70 /* the divider is held */
#define RTC_B_SET 0x80
#define RTC_B_24_HOURS 0x02

/* Enables in register B, flags in register C. */
#define RTC_PERIODIC 0x40
#define RTC_ALARM 0x20

static inline uint8_t cmos_read(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static inline void cmos_write(uint8_t index, uint8_t value)
{
    outb(0x70, index);
    outb(0x71, value);
}
