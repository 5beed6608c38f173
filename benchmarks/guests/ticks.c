/* ticks [count]: the 8254 at 100 Hz through the 8259, a processor that sleeps in between, and one
 * write to the stop port after so many interrupts; then it begins anew. */

#include "lib/apic.h"
#include "lib/arguments.h"
#include "lib/cpu.h"
#include "lib/descriptors.h"
#include "lib/exit.h"
#include "lib/pic.h"
#include "lib/pit.h"

#define VECTOR 0x20
#define HZ 100

volatile unsigned taken;

/* As short as a handler can be: what is measured is the way from one HLT to the next. */
void on_tick(struct interrupted *at);
__asm__("on_tick: push %rax\n"
        "incl taken(%rip)\n"
        "mov $0x20, %al\n" /* OCW2: end of interrupt, to the master's command port */
        "out %al, $0x20\n"
        "pop %rax\n"
        "iretq");

int main(int argc, char **argv)
{
    unsigned count = argument(argc, argv, 1, 1000);

    load_descriptors();
    load_exceptions();
    set_handler(VECTOR, on_tick);
    apic_virtual_wire();
    pic_init(VECTOR);
    pit_start(0, PIT_PERIODIC, PIT_HZ / HZ);
    pic_mask(0xfffe);
    for (;;) {
        taken = 0;
        while (taken < count)
            wait_for_interrupt();
        outb(DEBUG_EXIT_PORT, 0);
    }
}
