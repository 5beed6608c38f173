/* Processors that get in each other's way: each takes the same ticket lock again and again, and in
 * every round wakes the next of them with an interrupt and sleeps until it is woken itself.  What
 * the lock guards is not atomic, and no round ends without its interrupt: nothing may get lost.
 *
 * locks.elf [processors [rounds]]: 2 and 100 unless given.
 * Exit codes: 0, 1 not all processors came, 2 the count is wrong. */

#include "lib/apic.h"
#include "lib/arguments.h"
#include "lib/descriptors.h"
#include "lib/pic.h"
#include "lib/print.h"
#include "lib/smp.h"

#define WAKE 0x41

static volatile struct {
    unsigned next, serving;
} lock;
static volatile unsigned long counter;
static volatile unsigned ready, finished;
static unsigned processors, rounds;
static unsigned ids[MAX_CPUS];                 /* APIC IDs, by number */
static volatile unsigned woken[MAX_CPUS];      /* so often, by number */
static unsigned char number_of[256];           /* by APIC ID */

static void take_lock(void)
{
    unsigned ticket = __atomic_fetch_add(&lock.next, 1, __ATOMIC_SEQ_CST);
    while (lock.serving != ticket)
        __asm__ volatile("pause");
}

static void release_lock(void)
{
    lock.serving++;
}

INTERRUPT static void on_wake(struct interrupted *at)
{
    (void)at;
    woken[number_of[apic_id()]]++;
    apic_eoi();
}

static void work(unsigned number)
{
    unsigned next = (number + 1) % processors;

    for (unsigned round = 1; round <= rounds; round++) {
        take_lock();
        counter++;
        release_lock();
        enable_interrupts(); /* one that still waits in the next one's APIC would swallow ours */
        while (woken[next] < round - 1)
            __asm__ volatile("pause");
        disable_interrupts();
        apic_send(ids[next], WAKE);
        while (woken[number] < round)
            wait_for_interrupt();
    }
    __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
}

static void enter(unsigned number)
{
    ids[number] = apic_id();
    number_of[ids[number]] = number;
    __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
    while (ready < processors)
        __asm__ volatile("pause");
}

void ap_main(unsigned number)
{
    apic_enable();
    enter(number);
    work(number);
    for (;;)
        wait_for_interrupt();
}

int main(int argc, char **argv)
{
    processors = argument(argc, argv, 1, 2);
    rounds = argument(argc, argv, 2, 100);

    load_descriptors();
    load_exceptions();
    set_handler(WAKE, on_wake);
    pic_init(0x20);
    apic_enable();
    if (start_aps(processors - 1) != processors - 1)
        return 1;
    enter(0);
    work(0);
    while (finished < processors)
        __asm__ volatile("pause");
    print("locks: %u processors, the lock taken %lu times\n", processors, counter);
    return counter == (unsigned long)processors * rounds ? 0 : 2;
}
