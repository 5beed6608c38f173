#pragma once

/* argv[index] as a number (decimal, or hexadecimal after 0x), or `fallback` where it is missing. */
unsigned long argument(int argc, char **argv, int index, unsigned long fallback);
