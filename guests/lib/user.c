#include "lib/user.h"

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/paging.h"

extern char user_page[]; /* lib/elf64.ld */
void user_returned(void); /* lib/call_user.S */

/* An access from ring 3 needs the user bit at every level of the walk (SDM 3A 4.6). */
void allow_user_page(uint64_t address)
{
    uint64_t *table = (uint64_t *)(read_cr3() & PAGE_ADDRESS);
    for (int level = 3; level >= 0; level--) {
        uint64_t *entry = &table[page_index(address, level)];
        *entry |= PAGE_USER;
        if (*entry & PAGE_LARGE)
            break;
        table = (uint64_t *)(*entry & PAGE_ADDRESS);
    }
    write_cr3(read_cr3()); /* the TLB may hold the old rights */
}

void load_user(void)
{
    load_descriptors();
    load_exceptions();
    set_gate(VECTOR_UD, user_returned);
    allow_user_page((uint64_t)user_page);
}
