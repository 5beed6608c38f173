/* INT n from ring 3: system calls as they were before SYSCALL, through a gate that ring 3 may use.
 *
 * Three ways through the IDT: an interrupt gate, a trap gate on a stack of its own (IST 1), and one
 * that is ring 0's alone, where INT is #GP with the vector in its error code (SDM 3A 6.12.1.2).
 * Hosts that run ring 3 natively but have no virtualisation hardware may make all three #UD; an
 * ordinary #UD and #BP come last.  Exit codes: 0, 1 a way did not lead where it should. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/exit.h"
#include "lib/print.h"
#include "lib/user.h"

#define VECTOR_CALL 0x80
#define VECTOR_TRAP 0x81
#define VECTOR_KERNEL 0x82

#define DPL_3 0x60
#define TRAP_GATE 0x01 /* on top of an interrupt gate's type */
#define IST_1 1
#define RFLAGS_IF 0x200

void call_entry(void), trap_entry(void);

/* As an exception's stub does it: an error code, the vector, and on to where registers are saved. */
__asm__(".text\n"
        "call_entry:\n\t"
        "pushq  $0\n\t"
        "pushq  $0x80\n\t"
        "jmp    save_and_call\n"
        "trap_entry:\n\t"
        "pushq  $0\n\t"
        "pushq  $0x81\n\t"
        "jmp    save_and_call");

static char trap_stack[4096] __attribute__((aligned(16)));
static unsigned calls;

static int on_stack(struct frame *frame, char *stack, unsigned size)
{
    return (char *)frame >= stack && (char *)frame < stack + size;
}

static void expect(const char *what, int right)
{
    print("%s: %s\n", what, right ? "right" : "wrong");
    if (!right)
        exit_guest(1);
}

void on_exception(struct frame *frame)
{
    uint64_t flags;
    __asm__ volatile("pushfq; pop %0" : "=r"(flags));
    calls++;
    switch (frame->vector) {
    case VECTOR_CALL:
        expect("INT 0x80 through an interrupt gate", (frame->cs & 3) == 3 && frame->rax == 20 &&
               !(flags & RFLAGS_IF) && !on_stack(frame, trap_stack, sizeof trap_stack));
        frame->rax++;
        break;
    case VECTOR_TRAP:
        expect("INT 0x81 through a trap gate, on IST 1", (frame->cs & 3) == 3 && frame->rax == 21 &&
               on_stack(frame, trap_stack, sizeof trap_stack));
        frame->rax++;
        break;
    case VECTOR_GP:
        expect("INT 0x82 is #GP", frame->error_code == VECTOR_KERNEL * 8 + 2 && frame->rax == 22);
        frame->rip += 2; /* a fault: RIP is still on the INT */
        frame->rax++;
        break;
    case VECTOR_UD:
        expect("UD2 is #UD", frame->error_code == 0 && frame->rax == 23);
        frame->rip += 2;
        frame->rax++;
        break;
    case VECTOR_BP:
        expect("INT3 is #BP", frame->rax == 24);
        exit_guest(calls == 5 ? 0 : 1);
    default:
        print("%s in ring %lu, rax %lu\n", exception_name(frame->vector), frame->cs & 3, frame->rax);
        exit_guest(1);
    }
}

USER_TEXT static uint64_t user_main(uint64_t unused, uint64_t unused_too)
{
    (void)unused;
    (void)unused_too;
    __asm__ volatile("mov   $20, %%eax\n\t"
                     "int   $0x80\n\t"
                     "int   $0x81\n\t"
                     "int   $0x82\n\t"
                     "ud2\n\t"
                     "int3"
                     :
                     :
                     : "rax", "memory");
    return 0;
}

int main(void)
{
    load_descriptors();
    set_stack(IST_1, trap_stack + sizeof trap_stack);
    load_exceptions();
    allow_user_page((uint64_t)user_main);
    set_gate(VECTOR_CALL, call_entry);
    change_gate(VECTOR_CALL, DPL_3, 0);
    set_gate(VECTOR_TRAP, trap_entry);
    change_gate(VECTOR_TRAP, DPL_3 | TRAP_GATE, IST_1);
    set_gate(VECTOR_KERNEL, call_entry);
    change_gate(VECTOR_BP, DPL_3, 0);

    print("leaving ring 0\n");
    call_user(user_main, 0, 0);
    return 1;
}
