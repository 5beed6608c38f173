/* Memory-mapped I/O: a load or store where the VM has no memory becomes KVM_EXIT_MMIO, and the VMM
 * answers in a device's name.  The device is the reader's to write; 32-bit registers at 0xd0000000:
 *
 *   +0  ID   read   0x4d564b50, the bytes "PKVM"
 *   +4  ADD  write  adds the value to the sum
 *   +8  SUM  read   the sum so far
 *
 * Exit codes: 0 the device works, 1 no such device, 2 its sum is wrong. */

#include "lib/io.h"
#include "lib/print.h"

#define DEVICE 0xd0000000
#define ID (DEVICE + 0)
#define ADD (DEVICE + 4)
#define SUM (DEVICE + 8)

int main(void)
{
    uint32_t id = mmio_read32(ID);
    print("ID  = 0x%x\n", id);
    if (id != 0x4d564b50)
        return 1;

    mmio_write32(ADD, 40);
    mmio_write32(ADD, 2);
    uint32_t sum = mmio_read32(SUM);
    print("SUM = %u\n", sum);
    return sum == 42 ? 0 : 2;
}
