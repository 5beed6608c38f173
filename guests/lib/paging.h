/* Entries of 4-level page tables (SDM 3A 4.5). */
#pragma once

#include <stdint.h>

#define PAGE_PRESENT 0x01ul
#define PAGE_WRITABLE 0x02ul
#define PAGE_USER 0x04ul
#define PAGE_LARGE 0x80ul /* in a PD or PDPT entry: it maps a page and is not a table */
#define PAGE_ADDRESS 0x000ffffffffff000ul

/* Which of the 512 entries of the table at `level` (PML4 = 3 ... PT = 0) an address selects. */
static inline unsigned page_index(uint64_t address, int level)
{
    return address >> (12 + 9 * level) & 511;
}
