/* Exceptions: each instruction below cannot be carried out, the CPU says why (vector, error code,
 * for #PF the address in CR2), and the handler makes the guest go on after it. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/print.h"

#define UNMAPPED 0x700000000000      /* canonical, but in no page table */
#define NON_CANONICAL 0x800000000000 /* bit 47 and the bits above it differ */
#define BAD_SELECTOR 0x1238          /* beyond the limit of any GDT here */

static volatile uint64_t go_on_at;
static volatile unsigned seen; /* one bit a vector */

void on_exception(struct frame *frame)
{
    print(" %s, error code 0x%lx", exception_name(frame->vector), frame->error_code);
    if (frame->vector == VECTOR_PF)
        print(", cr2 0x%lx", read_cr2());
    print("\n");
    seen |= 1u << frame->vector;
    frame->rip = go_on_at;
}

/* Runs one instruction that faults; its operand is %[value]. */
#define PROVOKE(what, instruction, operand)                                                        \
    do {                                                                                           \
        print(what ":");                                                                           \
        __asm__ volatile("lea 1f(%%rip), %%rcx\n\t"                                                \
                         "mov %%rcx, %[go_on_at]\n\t" instruction "\n"                            \
                         "1:"                                                                      \
                         : [go_on_at] "=m"(go_on_at)                                               \
                         : [value] "r"((uint64_t)(operand))                                        \
                         : "rax", "rcx", "rdx", "memory");                                         \
    } while (0)

int main(void)
{
    load_exceptions();
    PROVOKE("divide by zero", "div %[value]", 0);
    PROVOKE("undefined instruction", "ud2", 0);
    PROVOKE("read an unmapped address", "mov (%[value]), %%rax", UNMAPPED);
    PROVOKE("write an unmapped address", "mov %%rax, (%[value])", UNMAPPED);
    PROVOKE("read a non-canonical address", "mov (%[value]), %%rax", NON_CANONICAL);
    PROVOKE("load a bad selector", "mov %[value], %%ds", BAD_SELECTOR);
    print("still here\n");
    return seen == (1 << VECTOR_DE | 1 << VECTOR_UD | 1 << VECTOR_GP | 1 << VECTOR_PF) ? 0 : 1;
}
