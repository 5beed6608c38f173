/* syscall3 [count]: a loop of SYSCALL in ring 3; ring 0 does nothing but SYSRET. */

#include "lib/arguments.h"
#include "lib/cpu.h"
#include "lib/user.h"

void entry(void);

__asm__(".text\n"
        "entry:\n\t"
        "sysretq");

USER_TEXT static uint64_t loop(uint64_t count, uint64_t unused)
{
    (void)unused;
    if (count)
        __asm__ volatile("1: syscall\n\t"
                         "dec %0\n\t"
                         "jnz 1b"
                         : "+r"(count)
                         :
                         : "rcx", "r11");
    return 0;
}

int main(int argc, char **argv)
{
    load_user();
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    write_msr(MSR_STAR, (uint64_t)KERNEL_CODE << 32 | (uint64_t)(KERNEL_DATA | 3) << 48);
    write_msr(MSR_LSTAR, (uint64_t)entry);
    write_msr(MSR_FMASK, 0x47700); /* cleared on entry: TF, IF, DF, IOPL, NT, AC */
    return call_user(loop, argument(argc, argv, 1, 1000), 0);
}
