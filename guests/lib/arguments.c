#include "lib/arguments.h"

static unsigned digit(char c)
{
    return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

unsigned long argument(int argc, char **argv, int index, unsigned long fallback)
{
    if (index >= argc)
        return fallback;
    const char *text = argv[index];
    unsigned base = text[0] == '0' && text[1] == 'x' ? 16 : 10;
    unsigned long value = 0;
    for (text += base == 16 ? 2 : 0; *text; text++)
        value = value * base + digit(*text);
    return value;
}
