/* COM1, a 16550 UART, polled in both directions. */
#pragma once

#define COM1 0x3f8
#define UART_DATA (COM1 + 0)        /* write: transmit holding register; read: receive buffer */
#define UART_FIFO_CONTROL (COM1 + 2)
#define UART_LINE_STATUS (COM1 + 5)
#define UART_SCRATCH (COM1 + 7)

#define LSR_DATA_READY 0x01
#define LSR_TRANSMIT_EMPTY 0x20

void serial_write(char byte); /* waits until the UART can take a byte */
char serial_read(void);       /* waits until a byte has arrived */
