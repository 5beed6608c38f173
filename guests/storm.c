/* A storm: does whatever a table in memory says, to ports, addresses and MSRs.  The host writes the
 * table before each run, and finds in it what came of each access. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/io.h"

#define TABLE 0x200000 /* accesses up to one of size 0 */

enum { IN, OUT, LOAD, STORE, RDMSR, WRMSR };

struct access {
    uint16_t what;
    uint8_t size, outcome; /* in bytes; DONE or FAULTED */
    uint32_t count;        /* of a string instruction; 0 for a plain IN or OUT */
    uint64_t where, value; /* written, or what was read */
};

enum { DONE = 1, FAULTED = 2 };

static void *next[5]; /* __builtin_setjmp: where to go on after a fault */
static uint8_t buffer[4096];

static void go_on(void)
{
    __builtin_longjmp(next, 1);
}

void on_exception(struct frame *frame)
{
    if (frame->vector != 2) /* NMIs come and go */
        frame->rip = (uint64_t)go_on;
}

static void ports(struct access *a)
{
    uint16_t port = a->where;
    uint32_t value = a->what == OUT ? a->value : 0;

    switch (a->what << 4 | a->size) {
    case IN << 4 | 1:
        __asm__ volatile("inb %1, %b0" : "+a"(value) : "d"(port));
        break;
    case IN << 4 | 2:
        __asm__ volatile("inw %1, %w0" : "+a"(value) : "d"(port));
        break;
    case IN << 4 | 4:
        __asm__ volatile("inl %1, %0" : "+a"(value) : "d"(port));
        break;
    case OUT << 4 | 1:
        __asm__ volatile("outb %b0, %1" : : "a"(value), "d"(port));
        break;
    case OUT << 4 | 2:
        __asm__ volatile("outw %w0, %1" : : "a"(value), "d"(port));
        break;
    case OUT << 4 | 4:
        __asm__ volatile("outl %0, %1" : : "a"(value), "d"(port));
        break;
    }
    a->value = value;
}

static void strings(struct access *a)
{
    void *from = buffer, *to = buffer;
    uint64_t count = a->count;
    uint16_t port = a->where;

    switch (a->what << 4 | a->size) {
    case IN << 4 | 1:
        __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(port) : "memory");
        break;
    case IN << 4 | 2:
        __asm__ volatile("rep insw" : "+D"(to), "+c"(count) : "d"(port) : "memory");
        break;
    case IN << 4 | 4:
        __asm__ volatile("rep insl" : "+D"(to), "+c"(count) : "d"(port) : "memory");
        break;
    case OUT << 4 | 1:
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
        break;
    case OUT << 4 | 2:
        __asm__ volatile("rep outsw" : "+S"(from), "+c"(count) : "d"(port) : "memory");
        break;
    case OUT << 4 | 4:
        __asm__ volatile("rep outsl" : "+S"(from), "+c"(count) : "d"(port) : "memory");
        break;
    }
}

static void addresses(struct access *a)
{
    uint64_t value = a->what == STORE ? a->value : 0;

    switch (a->what << 4 | a->size) {
    case LOAD << 4 | 1:
        __asm__ volatile("movb (%1), %b0" : "+a"(value) : "r"(a->where));
        break;
    case LOAD << 4 | 2:
        __asm__ volatile("movw (%1), %w0" : "+a"(value) : "r"(a->where));
        break;
    case LOAD << 4 | 4:
        __asm__ volatile("movl (%1), %k0" : "+a"(value) : "r"(a->where));
        break;
    case LOAD << 4 | 8:
        __asm__ volatile("movq (%1), %0" : "+a"(value) : "r"(a->where));
        break;
    case STORE << 4 | 1:
        __asm__ volatile("movb %b0, (%1)" : : "a"(value), "r"(a->where) : "memory");
        break;
    case STORE << 4 | 2:
        __asm__ volatile("movw %w0, (%1)" : : "a"(value), "r"(a->where) : "memory");
        break;
    case STORE << 4 | 4:
        __asm__ volatile("movl %k0, (%1)" : : "a"(value), "r"(a->where) : "memory");
        break;
    case STORE << 4 | 8:
        __asm__ volatile("movq %0, (%1)" : : "a"(value), "r"(a->where) : "memory");
        break;
    }
    a->value = value;
}

static void carry_out(struct access *a)
{
    switch (a->what) {
    case RDMSR:
        a->value = read_msr(a->where);
        return;
    case WRMSR:
        write_msr(a->where, a->value);
        return;
    case LOAD:
    case STORE:
        addresses(a);
        return;
    }
    if (a->count)
        strings(a);
    else
        ports(a);
}

int main(void)
{
    struct access *volatile at; /* volatile: it changes after the setjmp */

    load_exceptions();
    at = (struct access *)TABLE;
    while (at->size) {
        if (!__builtin_setjmp(next)) {
            carry_out(at);
            at->outcome = DONE;
        } else {
            at->outcome = FAULTED;
        }
        at++;
    }
    return 0;
}
