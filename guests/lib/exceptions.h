/* Exceptions 0 to 31, delivered to one C function (long mode). */
#pragma once

#include <stdint.h>

#define VECTOR_DE 0
#define VECTOR_BP 3
#define VECTOR_UD 6
#define VECTOR_GP 13
#define VECTOR_PF 14

/* The stack as lib/vectors.S leaves it: the registers, the vector, then what the CPU pushed.
 * What a handler changes here is in force when the interrupted code goes on. */
struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error_code; /* 0 for a vector that has no error code */
    uint64_t rip, cs, rflags, rsp, ss;
};

/* A guest that expects exceptions defines this; without it they end the guest with code 255. */
void on_exception(struct frame *frame);

void load_exceptions(void);                          /* fills the IDT and loads it */
void set_gate(unsigned vector, void (*entry)(void)); /* one vector to code of the guest's own */
void change_gate(unsigned vector, uint8_t type_bits, uint8_t ist); /* bits to add; stack 1-7, or 0 */
const char *exception_name(unsigned vector);
