/* A scheduler in the smallest sense: two tasks in ring 3, each an endless loop that never gives up
 * the CPU, and a timer interrupt that takes it away.  What lib/vectors.S saved on the stack is all
 * there is to a task: the handler keeps that of one and puts back that of the other.
 *
 * Exit codes: 0, 1 a task does not get on, 2 the timer did not interrupt ring 3. */

#include "lib/apic.h"
#include "lib/exceptions.h"
#include "lib/exit.h"
#include "lib/pic.h"
#include "lib/print.h"
#include "lib/user.h"

#define VECTOR_TIMER 0x40
#define COUNT 2000000
#define TURNS 5 /* how often each task is to get on */
#define PATIENCE 1000
#define RFLAGS_IF 0x202

void timer_entry(void);

/* As an exception's stub does it: an error code, the vector, and on to where registers are saved. */
__asm__(".text\n"
        "timer_entry:\n\t"
        "pushq  $0\n\t"
        "pushq  $0x40\n\t"
        "jmp    save_and_call");

USER_DATA static volatile uint64_t rounds[2];
USER_DATA static char stacks[2][4096] __attribute__((aligned(16)));

static struct frame tasks[2];
static int current;
static unsigned switches, turns[2];
static uint64_t seen[2];

USER_TEXT static _Noreturn void task(uint64_t number)
{
    for (;;)
        rounds[number]++;
}

/* Counts the task's turn if it got on; a busy host may let the next tick come before it could. */
static void look_at(int task)
{
    turns[task] += rounds[task] != seen[task];
    seen[task] = rounds[task];
    if (turns[0] >= TURNS && turns[1] >= TURNS) {
        print("tasks: two loops in ring 3 took turns\n");
        exit_guest(0);
    }
    if (++switches == PATIENCE)
        exit_guest(1);
}

void on_exception(struct frame *frame)
{
    if (frame->vector != VECTOR_TIMER) {
        print("tasks: %s\n", exception_name(frame->vector));
        exit_guest(255);
    }
    if ((frame->cs & 3) != 3)
        exit_guest(2);
    look_at(current);
    tasks[current] = *frame;
    current = !current;
    *frame = tasks[current];
    apic_eoi();
}

int main(void)
{
    load_user();
    set_gate(VECTOR_TIMER, timer_entry);
    pic_init(0x20);
    apic_enable();
    for (int i = 0; i < 2; i++)
        tasks[i] = (struct frame){
            .rip = (uint64_t)task,
            .rdi = i, /* its argument */
            .cs = USER_CODE_SELECTOR,
            .ss = USER_DATA_SELECTOR,
            .rsp = (uint64_t)(stacks[i] + sizeof stacks[i] - 8),
            .rflags = RFLAGS_IF,
        };

    apic_write(APIC_TIMER_DIVIDE, TIMER_DIVIDE_BY_1);
    apic_write(APIC_LVT_TIMER, TIMER_PERIODIC | VECTOR_TIMER);
    apic_write(APIC_TIMER_INITIAL, COUNT);
    __asm__ volatile("pushq %0\n\t" /* SS */
                     "pushq %1\n\t" /* RSP */
                     "pushq %2\n\t" /* RFLAGS: interrupts on */
                     "pushq %3\n\t" /* CS */
                     "pushq %4\n\t" /* RIP */
                     "xor %%edi, %%edi\n\t"
                     "iretq"
                     :
                     : "i"(USER_DATA_SELECTOR), "r"(tasks[0].rsp), "i"(RFLAGS_IF),
                       "i"(USER_CODE_SELECTOR), "r"(tasks[0].rip));
    __builtin_unreachable();
}
