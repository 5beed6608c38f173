/* A very small printf on the serial port: %c %s %d %u %x, and %ld %lu %lx for a register's width.
 * Hexadecimal digits are lower case; there are no field widths. */
#pragma once

__attribute__((format(printf, 1, 2))) void print(const char *format, ...);
