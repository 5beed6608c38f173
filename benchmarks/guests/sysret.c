/* sysret [1]: in ring 3, COUNT times SYSCALL, or with an argument that is not 0 COUNT times OUT,
 * then one write to the stop port; over and over.  What ring 0 does for SYSCALL is SYSRET. */

#include "lib/arguments.h"
#include "lib/cpu.h"
#include "lib/exit.h"
#include "lib/user.h"

#define COUNT 500
#define PORT 0x10

void entry(void);

__asm__(".text\n"
        "entry:\n\t"
        "sysretq");

USER_TEXT static void call(void)
{
    for (unsigned i = 0; i < COUNT; i++)
        __asm__ volatile("syscall" : : : "rcx", "r11", "memory");
}

USER_TEXT static void out(void)
{
    for (unsigned i = 0; i < COUNT; i++)
        __asm__ volatile("out %%al, %0" : : "i"(PORT), "a"(0));
}

USER_TEXT static uint64_t loop(uint64_t which, uint64_t unused)
{
    for (;;) {
        if (which)
            out();
        else
            call();
        __asm__ volatile("out %%al, %0" : : "N"(DEBUG_EXIT_PORT), "a"(0));
    }
    return unused; /* never */
}

int main(int argc, char **argv)
{
    load_user();
    allow_user_ports();
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    write_msr(MSR_STAR, (uint64_t)KERNEL_CODE << 32 | (uint64_t)(KERNEL_DATA | 3) << 48);
    write_msr(MSR_LSTAR, (uint64_t)entry);
    write_msr(MSR_FMASK, 0x47700); /* cleared on entry: TF, IF, DF, IOPL, NT, AC */
    return call_user(loop, argument(argc, argv, 1, 0), 0);
}
