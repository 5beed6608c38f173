/* The entry point of a position-independent guest: linked at 0 and loaded anywhere, it first adds
 * the address where it stands to every pointer that the linker could not know. */

#include <stdint.h>

#include "lib/exit.h"

#define R_X86_64_RELATIVE 8

struct rela {
    uint64_t offset, type, addend;
};

#define LINKED __attribute__((visibility("hidden"))) extern /* lib/elf64pie.ld */
LINKED char image[];
LINKED const struct rela rela_start[], rela_end[];

int main(int argc, char **argv);

_Noreturn void _start(int argc, char **argv)
{
    uint64_t base = (uint64_t)image;
    for (const struct rela *rela = rela_start; rela < rela_end; rela++) {
        if (rela->type != R_X86_64_RELATIVE)
            exit_guest(254);
        *(volatile uint64_t *)(base + rela->offset) = base + rela->addend;
    }
    exit_guest(main(argc, argv));
}
