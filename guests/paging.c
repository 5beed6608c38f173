/* Page tables: the guest finds its own through CR3, walks them, adds a page to them, and lets a page
 * fault add another.  The VMM's identity map means that a table's physical address is also where
 * the guest can read and write it. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/paging.h"
#include "lib/print.h"

#define WINDOW 0x400000000000ul /* 64 TiB: far from anything that the VMM mapped */
#define PAGE 4096

static uint64_t spare[8][PAGE / 8] __attribute__((aligned(PAGE))); /* pages and new tables */
static int used;

static uint64_t new_page(void)
{
    return (uint64_t)spare[used++]; /* zeroed, as all of .bss */
}

static void show_walk(uint64_t address)
{
    static const char names[4][5] = {"PT", "PD", "PDPT", "PML4"};
    uint64_t *table = (uint64_t *)(read_cr3() & PAGE_ADDRESS);

    print("0x%lx:", address);
    for (int level = 3; level >= 0; level--) {
        unsigned index = page_index(address, level);
        uint64_t entry = table[index];
        print(" %s[%u]", names[level], index);
        if (!(entry & PAGE_PRESENT)) {
            print(" not present\n");
            return;
        }
        if (level == 0 || entry & PAGE_LARGE) {
            uint64_t inside = (1ul << (12 + 9 * level)) - 1; /* the offset within the page */
            print(" -> 0x%lx\n", (entry & PAGE_ADDRESS & ~inside) | (address & inside));
            return;
        }
        table = (uint64_t *)(entry & PAGE_ADDRESS);
    }
}

static void map(uint64_t address, uint64_t page)
{
    uint64_t *table = (uint64_t *)(read_cr3() & PAGE_ADDRESS);
    for (int level = 3; level > 0; level--) {
        uint64_t *entry = &table[page_index(address, level)];
        if (!(*entry & PAGE_PRESENT))
            *entry = new_page() | PAGE_WRITABLE | PAGE_PRESENT;
        table = (uint64_t *)(*entry & PAGE_ADDRESS);
    }
    table[page_index(address, 0)] = page | PAGE_WRITABLE | PAGE_PRESENT;
    __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

void on_exception(struct frame *frame) /* on return the faulting instruction runs once more */
{
    uint64_t address = read_cr2();
    print("%s, error code 0x%lx, at 0x%lx: mapped on demand\n", exception_name(frame->vector),
          frame->error_code, address);
    map(address & PAGE_ADDRESS, new_page());
}

int main(void)
{
    volatile uint64_t *page = (uint64_t *)new_page();
    volatile uint64_t *window = (uint64_t *)WINDOW;

    load_exceptions();
    show_walk(0x100000); /* where this guest is linked */
    show_walk(WINDOW);

    map(WINDOW, (uint64_t)page);
    *page = 42;
    print("mapped; read through the new address: %lu\n", *window);
    *window = 43;
    print("written there, read through the old: %lu\n", *page);

    window[PAGE / 8] = 44; /* the next page: #PF, and then it works */
    show_walk(WINDOW + PAGE);
    return *page == 43 && window[PAGE / 8] == 44 ? 0 : 1;
}
