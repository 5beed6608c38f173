/* String I/O: REP OUTSB and REP INSB move a whole buffer to or from one port.  KVM may hand the VMM
 * many items in one exit (kvm_run.io.count); the guest cannot tell.
 *
 * Any 16550 answers both parts: it buffers up to 16 bytes to transmit once its FIFOs are on, and
 * its scratch register gives back what was written to it. */

#include "lib/io.h"
#include "lib/print.h"
#include "lib/serial.h"

#define FIFO_ENABLE 0x01
#define FIFO_SIZE 16

static void out_string(uint16_t port, const void *from, unsigned long count)
{
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
}

static void in_string(uint16_t port, void *to, unsigned long count)
{
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(port) : "memory");
}

int main(void)
{
    static const char line[FIFO_SIZE] = "sixteen at once\n";
    char buffer[9];

    outb(UART_FIFO_CONTROL, FIFO_ENABLE);
    while (!(inb(UART_LINE_STATUS) & LSR_TRANSMIT_EMPTY))
        ;
    out_string(UART_DATA, line, sizeof line);

    outb(UART_SCRATCH, '*');
    in_string(UART_SCRATCH, buffer, 8);
    buffer[8] = 0;
    print("rep insb read %s\n", buffer);
    for (int i = 0; i < 8; i++)
        if (buffer[i] != '*')
            return 1;
    return 0;
}
