/* A serial port at full speed without a lost character: interrupts, and flow control.
 *
 * What arrives is sent back, up to a Ctrl-D.  The interrupt handler moves characters between the
 * port and two small rings; the main program moves them from one ring to the other, and halts when
 * it has nothing to do.  Before a ring runs over, the guest lowers RTS, on which the sender
 * waits, and raises it again once there is room.  A whole FIFO may still be on its way
 * then, so that much room is kept.  (PC16550D data sheet, 8.5 to 8.7; ITU-T V.24, circuit 133.)
 *
 * Exit codes: 0, 1 a character did not fit into the ring. */

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
#define IIR_NONE 0x01
#define FIFO_ENABLE 0x07 /* and empty both */
#define FIFO_TRIGGER_8 0x80
#define FIFO_SIZE 16
#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_INTERRUPTS 0x08 /* OUT2, which opens the way to the interrupt line on a PC */

#define END 0x04 /* Ctrl-D */

/* Each end is moved by one side only, so no lock is needed. */
struct ring {
    volatile unsigned put, got;
    volatile char data[64];
};

static struct ring in, out;
static volatile int lost;
static int stopped;

static unsigned room(const struct ring *ring)
{
    return sizeof ring->data - (ring->put - ring->got);
}

static void put(struct ring *ring, char byte)
{
    ring->data[ring->put % sizeof ring->data] = byte;
    ring->put = ring->put + 1;
}

static char get(struct ring *ring)
{
    char byte = ring->data[ring->got % sizeof ring->data];
    ring->got = ring->got + 1;
    return byte;
}

static void tell_sender(void)
{
    const int stop = room(&in) <= FIFO_SIZE;
    if (stop != stopped) {
        stopped = stop;
        outb(UART_MCR, MCR_INTERRUPTS | MCR_DTR | (stop ? 0 : MCR_RTS));
    }
}

INTERRUPT static void on_serial(struct interrupted *at)
{
    (void)at;
    while (!(inb(UART_IIR) & IIR_NONE)) {
        while (inb(UART_LINE_STATUS) & LSR_DATA_READY) {
            const char byte = inb(UART_DATA);
            if (room(&in))
                put(&in, byte);
            else
                lost = 1;
        }
        tell_sender();
        for (unsigned i = 0; i < FIFO_SIZE && out.got != out.put; i++)
            outb(UART_DATA, get(&out));
        if (out.got == out.put)
            outb(UART_IER, IER_RECEIVED); /* nothing to send: the empty transmitter is no news */
    }
    apic_eoi();
}

int main(void)
{
    load_exceptions();
    set_handler(VECTOR, on_serial);
    pic_init(0x20);
    apic_enable();
    ioapic_route(PIN, VECTOR, apic_id());

    outb(UART_FIFO_CONTROL, FIFO_ENABLE | FIFO_TRIGGER_8);
    outb(UART_IER, IER_RECEIVED);
    outb(UART_MCR, MCR_INTERRUPTS | MCR_DTR | MCR_RTS);

    for (char byte = 0; byte != END && !lost;) {
        disable_interrupts();
        if (in.got == in.put || !room(&out)) {
            wait_for_interrupt();
            continue;
        }
        while (byte != END && in.got != in.put && room(&out))
            if ((byte = get(&in)) != END)
                put(&out, byte);
        tell_sender();
        outb(UART_IER, IER_RECEIVED | IER_THR_EMPTY);
        enable_interrupts();
    }
    disable_interrupts();
    while (out.got != out.put)
        wait_for_interrupt();
    outb(UART_IER, 0);
    return lost;
}
