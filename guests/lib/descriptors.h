/* A GDT with user segments and a TSS (long mode).  The order of the four code and data segments
 * is the one SYSCALL and SYSRET ask for (SDM 2B, SYSRET: SS = base + 8, CS = base + 16). */
#pragma once

#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_DATA_SELECTOR (0x18 | 3)
#define USER_CODE_SELECTOR (0x20 | 3)
#define TSS_SELECTOR 0x28

#ifndef __ASSEMBLER__

void load_descriptors(void);
void set_stack(unsigned ist, void *top); /* what gates with this IST, 1 to 7, switch to */
void allow_user_ports(void); /* ring 3 may use every port; until then it may use none */

#endif
