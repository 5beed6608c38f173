#include "lib/serial.h"

#include "lib/io.h"

/* A UART that is reset transmits at once in every VMM; hardware would want its baud rate and
 * line format set first. */

void serial_write(char byte)
{
    while (!(inb(UART_LINE_STATUS) & LSR_TRANSMIT_EMPTY))
        ;
    outb(UART_DATA, byte);
}

char serial_read(void)
{
    while (!(inb(UART_LINE_STATUS) & LSR_DATA_READY))
        __asm__ volatile("pause");
    return inb(UART_DATA);
}
