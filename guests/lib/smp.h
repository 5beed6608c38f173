/* Starting the other processors (SDM 3A 8.4). */
#pragma once

#define MAX_CPUS 16 /* any more stay asleep */

#ifndef __ASSEMBLER__

/* What each of them runs, on a stack of its own, with the IDT of the processor that started it and
 * interrupts off; `number` counts from 1 in the order in which they came. */
void ap_main(unsigned number);

/* Starts all processors but this one, which must have loaded descriptors, IDT and local APIC.
 * Returns once `wanted` others have come, or none more came for some time: how many there are. */
unsigned start_aps(unsigned wanted);

#endif
