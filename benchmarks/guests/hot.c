/* hot [interrupts]: what an access to each of a PC's devices costs, as the TSC shows it.  For each
 * of them a line on the debug console, "name accesses ticks": the fewest ticks that BATCHES batches
 * of so many accesses took.  Then comes "end", and all of it again.
 *
 * Each batch ends with an access that no device can put off. */

#include "lib/apic.h"
#include "lib/arguments.h"
#include "lib/cpu.h"
#include "lib/interrupts.h"
#include "lib/io.h"
#include "lib/pic.h"

#define REPEAT 64
#define BATCHES 16
#define BURSTS 8
#define FIFO 16

#define DEBUG_CONSOLE 0xe9
#define KEYBOARD_STATUS 0x64
#define COM1 0x3f8
#define HPET 0xfed00000
#define UNCLAIMED_PORT 0x1230
#define UNCLAIMED_ADDRESS 0x20000000

#define IER_THR_EMPTY 2
#define FCR_ENABLE_AND_CLEAR 0xc7
#define MCR_DTR_RTS_OUT2 0x0b
#define VECTOR 0x20
#define COM1_IRQ 4

static void say(const char *text)
{
    while (*text)
        outb(DEBUG_CONSOLE, *text++);
}

static void say_number(uint64_t number)
{
    if (number >= 10)
        say_number(number / 10);
    outb(DEBUG_CONSOLE, '0' + number % 10);
}

static void tell(const char *name, unsigned accesses, uint64_t ticks)
{
    say(name);
    say(" ");
    say_number(accesses);
    say(" ");
    say_number(ticks);
    say("\n");
}

static uint64_t least(void (*batch)(void))
{
    uint64_t least = ~0ul;

    for (int i = 0; i < BATCHES; i++) {
        uint64_t start = rdtsc(), ticks;

        batch();
        inb(KEYBOARD_STATUS);
        ticks = rdtsc() - start;
        if (ticks < least)
            least = ticks;
    }
    return least;
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

/* A batch of instructions that may change EAX, EDX and EDI. */
#define BATCH(name, instructions)                                                                  \
    static void name(void)                                                                         \
    {                                                                                              \
        __asm__ volatile(".rept " TEXT(REPEAT) "\n\t" instructions "\n\t.endr"                     \
                         :                                                                         \
                         :                                                                         \
                         : "eax", "edx", "edi", "memory");                                         \
    }

#define IN(port) "mov $" TEXT(port) ", %%edx; in %%dx, %%al; "
#define OUT(port, byte) "mov $" TEXT(port) ", %%edx; mov $" TEXT(byte) ", %%eax; out %%al, %%dx; "
#define LOAD(address) "mov $" TEXT(address) ", %%edi; mov (%%rdi), %%eax; "
#define STORE(address) "mov $" TEXT(address) ", %%edi; mov %%eax, (%%rdi); "

BATCH(uart_out, OUT(0x3f8, 0x78))
BATCH(uart_poll, IN(0x3fd) OUT(0x3f8, 0x78))
BATCH(uart_status, IN(0x3fa) IN(0x3fd) OUT(0x3f8, 0x78))
BATCH(port_read, IN(UNCLAIMED_PORT))
BATCH(port_write, OUT(UNCLAIMED_PORT, 0))
BATCH(mmio_read, LOAD(UNCLAIMED_ADDRESS))
BATCH(mmio_write, STORE(UNCLAIMED_ADDRESS))
BATCH(pm_timer, "mov $0x608, %%edx; in %%dx, %%eax; ")
BATCH(hpet, LOAD(HPET + 0xf0))
BATCH(cmos, OUT(0x70, 0x0a) IN(0x71) OUT(0x70, 0) IN(0x71) OUT(0x70, 0x0f) IN(0x71))
BATCH(pit, OUT(0x43, 0) IN(0x40) IN(0x40))
BATCH(pic_mask_and_back, IN(0x21) OUT(0x21, 0xfb) OUT(0x21, 0xff))
BATCH(pic_end, OUT(0x20, 0x20))

static volatile unsigned bursts;
static unsigned burst;

/* What a driver does that has more to say than goes into the FIFO. */
INTERRUPT static void on_serial(struct interrupted *frame)
{
    (void)frame;
    inb(COM1 + 2);
    if (inb(COM1 + 5) & 0x20 && bursts) {
        for (unsigned i = 0; i < burst; i++)
            outb(COM1, 'x');
        if (!--bursts)
            outb(COM1 + 1, 0);
    }
    pic_eoi(COM1_IRQ);
}

static void by_interrupts(void)
{
    bursts = BURSTS;
    outb(COM1 + 1, IER_THR_EMPTY);
    while (bursts)
        wait_for_interrupt();
}

static void tell_interrupts(void)
{
    outb(COM1 + 2, 0);
    burst = 1;
    tell("uart-irq-byte", BURSTS, least(by_interrupts));
    outb(COM1 + 2, FCR_ENABLE_AND_CLEAR);
    burst = FIFO;
    tell("uart-irq-burst", BURSTS * FIFO, least(by_interrupts));
    outb(COM1 + 2, 0);
}

int main(int argc, char **argv)
{
    unsigned interrupts = argument(argc, argv, 1, 1);

    load_exceptions();
    pic_init(VECTOR);
    outb(0x43, 0x34); /* the 8254's counter 0: a rate generator, low byte and high byte */
    outb(0x40, 0);
    outb(0x40, 0);
    mmio_write32(HPET + 0x10, 1);
    outb(COM1 + 3, 3);
    outb(COM1 + 4, MCR_DTR_RTS_OUT2);
    if (interrupts) {
        set_handler(VECTOR + COM1_IRQ, on_serial);
        apic_virtual_wire();
        pic_mask(0xffff & ~(1 << COM1_IRQ));
    }
    for (;;) {
        tell("uart-out", REPEAT, least(uart_out));
        tell("uart-poll", 2 * REPEAT, least(uart_poll));
        tell("port-read", REPEAT, least(port_read));
        tell("port-write", REPEAT, least(port_write));
        tell("mmio-read", REPEAT, least(mmio_read));
        tell("mmio-write", REPEAT, least(mmio_write));
        tell("pm-timer", REPEAT, least(pm_timer));
        tell("hpet", REPEAT, least(hpet));
        tell("cmos", 6 * REPEAT, least(cmos));
        tell("pit", 3 * REPEAT, least(pit));
        if (interrupts)
            tell_interrupts();
        pic_mask(0xffff);
        tell("pic-mask", 3 * REPEAT, least(pic_mask_and_back));
        tell("pic-eoi", REPEAT, least(pic_end));
        outb(COM1 + 1, IER_THR_EMPTY);
        tell("uart-status", 3 * REPEAT, least(uart_status));
        outb(COM1 + 1, 0);
        if (interrupts)
            pic_mask(0xffff & ~(1 << COM1_IRQ));
        say("end\n");
    }
}
