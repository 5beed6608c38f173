/* Functions for a host to call, while this waits: see Machine.call.
 *
 * It says that it waits, and halts with interrupts on; nothing interrupts it. */

#include <stddef.h>
#include <stdint.h>

#include "lib/interrupts.h"
#include "lib/print.h"

#define CALLED __attribute__((used, noinline))

volatile unsigned calls;

CALLED uint64_t checksum(const unsigned char *bytes, size_t count)
{
    uint64_t sum = 0;

    calls++;
    while (count--)
        sum += *bytes++;
    return sum;
}

CALLED uint64_t eight(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                      uint64_t h)
{
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}

CALLED void reverse(char *text, size_t length)
{
    for (size_t i = 0; i < length / 2; i++) {
        char other = text[length - 1 - i];

        text[length - 1 - i] = text[i];
        text[i] = other;
    }
}

CALLED int minus_one(void)
{
    return -1;
}

CALLED const char *name_of(unsigned number)
{
    return number == 7 ? "seven" : "another";
}

CALLED unsigned say(const char *text)
{
    print("%s\n", text);
    return 1;
}

CALLED unsigned wander(void)
{
    return *(volatile unsigned *)0x7fffffff0000;
}

CALLED void spin(void)
{
    for (;;)
        __asm__ volatile("pause");
}

CALLED void halts(void)
{
    __asm__ volatile("hlt");
}

CALLED void leave(int code)
{
    __asm__ volatile("out %b0, %w1" : : "a"(code), "Nd"(0xf4));
}

int main(void)
{
    print("waiting\n");
    for (;;)
        wait_for_interrupt();
}
