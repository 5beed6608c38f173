#include "lib/exceptions.h"

#include "lib/cpu.h"
#include "lib/exit.h"
#include "lib/print.h"

#define VECTORS 32 /* exceptions; what interrupts get is up to the guest */
#define GATES 256
#define STUB_SIZE 16 /* lib/vectors.S */

/* A 64-bit interrupt gate (SDM 3A 6.14.1). */
struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

extern const char vectors[VECTORS][STUB_SIZE];

static struct gate idt[GATES];

void set_gate(unsigned vector, void (*entry)(void))
{
    uint64_t offset = (uint64_t)entry;
    uint16_t cs;
    __asm__("mov %%cs, %0" : "=r"(cs));
    idt[vector] = (struct gate){
        .offset_low = offset,
        .selector = cs,
        .type = 0x8e, /* present, DPL 0, interrupt gate */
        .offset_middle = offset >> 16,
        .offset_high = offset >> 32,
    };
}

void change_gate(unsigned vector, uint8_t type_bits, uint8_t ist)
{
    idt[vector].type |= type_bits;
    idt[vector].ist = ist;
}

void load_exceptions(void)
{
    struct table_register idtr = {sizeof idt - 1, (uint64_t)idt};
    for (unsigned vector = 0; vector < VECTORS; vector++)
        set_gate(vector, (void (*)(void))vectors[vector]);
    __asm__ volatile("lidt %0" : : "m"(idtr));
}

const char *exception_name(unsigned vector)
{
    static const char names[VECTORS][4] = {
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", [10] = "#TS", "#NP",
        "#SS", "#GP", "#PF", [16] = "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    };
    return vector < VECTORS && names[vector][0] ? names[vector] : "reserved";
}

__attribute__((weak)) void on_exception(struct frame *frame)
{
    print("unexpected %s, error code 0x%lx, rip 0x%lx, cr2 0x%lx\n", exception_name(frame->vector),
          frame->error_code, frame->rip, read_cr2());
    exit_guest(255);
}
