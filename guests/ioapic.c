/* A device's interrupt through the I/O APIC: the serial port, pin 4.
 *
 * The line below is sent by interrupts alone: whenever the transmitter is empty (THRE), it asks for
 * the next character.  Before that the port talks to itself (loopback): four characters reach the
 * FIFO's trigger level and interrupt as "received data", the fifth waits alone until the chip
 * reports a timeout.  (PC16550D data sheet, 8.5 to 8.6.)
 *
 * Exit codes: 0, 1 wrong characters, 2 no timeout. */

#include "lib/apic.h"
#include "lib/pic.h"
#include "lib/serial.h"

#define VECTOR 0x40
#define PIN 4

#define UART_IER (COM1 + 1)
#define UART_IIR (COM1 + 2)
#define UART_MCR (COM1 + 4)

#define IER_RECEIVED 0x01
#define IER_THR_EMPTY 0x02
#define FIFO_ENABLE 0x07 /* and empty both */
#define FIFO_TRIGGER_4 0x40
#define MCR_DTR_RTS 0x03
#define MCR_INTERRUPTS 0x08 /* OUT2, which opens the way to the interrupt line on a PC */
#define MCR_LOOP 0x10

enum cause { NONE = 0x1, THR_EMPTY = 0x2, RECEIVED = 0x4, TIMEOUT = 0xc };

static const char *volatile to_send = "";
static volatile unsigned received, timeouts;
static char buffer[8];

INTERRUPT static void on_serial(struct interrupted *at)
{
    (void)at;
    enum cause cause;
    /* The line stays high until every cause is gone, and an edge comes only once. */
    while ((cause = inb(UART_IIR) & 0xf) != NONE) {
        if (cause == THR_EMPTY) {
            const char *next = to_send;
            if (!*next)
                break; /* reading the IIR has cleared this cause */
            outb(UART_DATA, *next);
            to_send = next + 1;
        } else {
            timeouts += cause == TIMEOUT;
            while (inb(UART_LINE_STATUS) & LSR_DATA_READY)
                buffer[received++ & 7] = inb(UART_DATA);
        }
    }
    apic_eoi();
}

static void receive(const char *text, unsigned length)
{
    unsigned wanted = received + length;
    while (length--)
        outb(UART_DATA, *text++);
    while (received < wanted)
        wait_for_interrupt();
}

int main(void)
{
    load_exceptions();
    set_handler(VECTOR, on_serial);
    pic_init(0x20);
    apic_enable();
    ioapic_route(PIN, VECTOR, apic_id());

    outb(UART_FIFO_CONTROL, FIFO_ENABLE | FIFO_TRIGGER_4);
    outb(UART_MCR, MCR_LOOP | MCR_INTERRUPTS | MCR_DTR_RTS);
    outb(UART_IER, IER_RECEIVED);
    receive("loop", 4);
    receive("!", 1);
    for (int i = 0; i < 5; i++)
        if (buffer[i] != "loop!"[i])
            return 1;
    if (!timeouts)
        return 2;

    outb(UART_MCR, MCR_INTERRUPTS | MCR_DTR_RTS);
    to_send = "IOAPIC: this line was sent by interrupts\n";
    outb(UART_IER, IER_THR_EMPTY); /* the transmitter is empty: the first comes at once */
    while (*to_send)
        wait_for_interrupt();
    outb(UART_IER, 0);
    return 0;
}
