/* deadline [ring [count]]: interrupts of the local APIC's TSC-deadline timer, one at a time, which
 * find the processor asleep (ring 0) or in a loop (ring 3).  Each leaves a sample; after so many of
 * them comes one write to the stop port; over and over. */

#include "lib/apic.h"
#include "lib/arguments.h"
#include "lib/cpu.h"
#include "lib/exit.h"
#include "lib/pic.h"
#include "lib/user.h"

#define VECTOR 0x40
#define AHEAD 1000000 /* TSC ticks */
#define MAX_SAMPLES 1000
#define MSR_TSC_DEADLINE 0x6e0

/* TSC values: what was asked for, the handler's first instruction, and then after nothing, after
 * an EOI and after a read of TPR.  Read by the benchmark. */
struct sample {
    uint64_t deadline, entry, idle, ended, read;
} samples[MAX_SAMPLES];

struct sample now;
static unsigned count, taken;

void on_deadline(void); /* below */

static void ask(void)
{
    now.deadline = rdtsc() + AHEAD;
    write_msr(MSR_TSC_DEADLINE, now.deadline);
}

/* Called by the handler with the sample complete. */
void next(void)
{
    samples[taken++] = now;
    if (taken == count) {
        outb(DEBUG_EXIT_PORT, 0);
        taken = 0;
    }
    ask();
}

/* What it interrupts is one instruction, which needs no register: none is saved, so that RDTSC can
 * come first. */
#define STAMP(where) "rdtsc\n\t mov %eax, now + " #where "\n\t mov %edx, now + 4 + " #where "\n\t"
__asm__(".globl on_deadline\n"
        "on_deadline:\n\t"
        STAMP(8)
        STAMP(16)
        "mov $0xfee000b0, %eax\n\t"
        "movl $0, (%rax)\n\t"
        STAMP(24)
        "mov $0xfee00080, %eax\n\t"
        "mov (%rax), %eax\n\t"
        STAMP(32)
        "call next\n\t"
        "iretq");

USER_TEXT static void spin(void)
{
    __asm__ volatile("1: jmp 1b");
}

/* call_user() keeps interrupts off; here they are the point. */
static void spin_in_ring_3(void)
{
    __asm__ volatile("pushq %0; pushq %1; pushq $0x202; pushq %2; pushq %3; iretq"
                     :
                     : "i"(USER_DATA_SELECTOR), "r"(user_stack_top), "i"(USER_CODE_SELECTOR),
                       "r"(spin));
}

int main(int argc, char **argv)
{
    unsigned ring = argument(argc, argv, 1, 0);

    count = argument(argc, argv, 2, 100);
    if (count > MAX_SAMPLES)
        return 1;
    load_user();
    set_gate(VECTOR, on_deadline);
    pic_init(0x20);
    apic_enable();
    apic_write(APIC_LVT_TIMER, TIMER_TSC_DEADLINE | VECTOR);
    ask();
    if (ring == 3)
        spin_in_ring_3();
    enable_interrupts();
    for (;;)
        __asm__ volatile("hlt");
}
