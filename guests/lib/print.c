#include "lib/print.h"

#include <stdarg.h>

#include "lib/serial.h"

static void print_string(const char *text)
{
    while (*text)
        serial_write(*text++);
}

static void print_number(unsigned long value, unsigned base)
{
    char digits[20]; /* 2^64 - 1 has twenty */
    int count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count)
        serial_write(digits[--count]);
}

static void print_signed(long value)
{
    if (value < 0)
        serial_write('-');
    print_number(value < 0 ? -(unsigned long)value : (unsigned long)value, 10);
}

void print(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    for (; *format; format++) {
        if (*format != '%') {
            serial_write(*format);
            continue;
        }
        int is_long = *++format == 'l';
        switch (format += is_long, *format) {
        case 'c':
            serial_write(va_arg(values, int));
            break;
        case 's':
            print_string(va_arg(values, const char *));
            break;
        case 'd':
            print_signed(is_long ? va_arg(values, long) : va_arg(values, int));
            break;
        case 'u':
            print_number(is_long ? va_arg(values, unsigned long) : va_arg(values, unsigned), 10);
            break;
        case 'x':
            print_number(is_long ? va_arg(values, unsigned long) : va_arg(values, unsigned), 16);
            break;
        default: /* "%%", and anything else as it stands */
            serial_write(*format);
        }
    }
    va_end(values);
}
