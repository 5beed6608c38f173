/* Serial in and out: what arrives is sent back, until a line that holds only a q.
 *
 * Both directions are polled: while it waits the guest reads the line status register over and
 * over, a VM exit each time.  Interrupts exist to avoid that. */

#include "lib/print.h"
#include "lib/serial.h"

int main(void)
{
    char first = 0;
    unsigned length = 0;

    print("Type, and end with a line that is just q.\n");
    for (;;) {
        char byte = serial_read();
        if (byte == '\r') /* what Enter sends on a raw terminal */
            byte = '\n';
        serial_write(byte);
        if (byte != '\n') {
            if (length++ == 0)
                first = byte;
            continue;
        }
        if (length == 1 && first == 'q')
            break;
        length = 0;
    }
    print("Bye.\n");
    return 0;
}
