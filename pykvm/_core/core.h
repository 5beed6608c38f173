/*
 * What pykvm's run loop in C shows to Python.
 *
 * build.py hands this file to cffi (without the lines that start with '#') and core.c includes it,
 * so the two cannot disagree.  Structs here hold plain types only; what needs <pthread.h> or
 * <time.h> comes after `struct pykvm_private`.
 */
#ifndef PYKVM_CORE_H
#define PYKVM_CORE_H
#include <stdint.h>

#include "dirty.h"
#include "line.h"
#include "published.h"

/*
 * What pykvm_run() returns.  Zero and above: a write that lies wholly inside one range of the map;
 * the number is its slot.  PYKVM_READ and below: such a read, of slot PYKVM_READ - number.  Else
 * one of the others.
 */
enum pykvm_code {
    PYKVM_EXIT = -1,      /* the kvm_run page holds an exit for Python */
    PYKVM_AGAIN = -2,     /* a signal or a tick: let Python look at its own signals, then go on */
    PYKVM_KICKED = -3,    /* pykvm_kick() was called since pykvm_enter() or the last PYKVM_KICKED */
    PYKVM_DEADLINE = -4,  /* the deadline given to pykvm_enter() has passed */
    PYKVM_ERROR = -5,     /* KVM_RUN failed; `error` has its errno */
    PYKVM_ALARM = -7,     /* the time given to pykvm_set_alarm() has come; there is no alarm now */
    PYKVM_ATTENTION = -8, /* `attention` is set: it stays so until Python clears it */
    PYKVM_OVER = -9,      /* the run is over: pykvm_finish() or pykvm_end() was called */
    PYKVM_REFUSED = -10,  /* of pykvm_step(): `refusal` says why */
    PYKVM_CALLED = -11,   /* of drive(): a device was called, and that was to be all */
    PYKVM_READ = -16,
    PYKVM_DRAIN = -6      /* collected writes wait: pykvm_take() them, then pykvm_run() again */
};

enum {
    PYKVM_PIO = 0,
    PYKVM_MMIO = 1,
    PYKVM_COUNTERS = 128 /* exits by reason (index below 64), writes by reason + 64 */
};

/* SDM 4 table 2-2, IA32_EFER. */
#define EFER_LMA (1ull << 10)

struct pykvm_map;
struct pykvm_native;
struct pykvm_private;

/* Guest memory as the host sees it. */
struct pykvm_region {
    uint64_t start; /* guest-physical */
    uint64_t size;
    const uint8_t *host;
    struct pykvm_pages *pages; /* to mark in what is stored; NULL for one that only reads */
};

/* What makes SYSCALL good on a host that gets it wrong (syscall.c).  Python fills it in. */
struct pykvm_syscall {
    uint64_t handler;   /* where the guest's #PF handler begins and a breakpoint stands, or 0 */
    uint64_t lstar;
    uint64_t fmask;
    uint64_t worked_around; /* SYSCALLs so far */
    uint64_t passed_on; /* page faults that were none */
    const struct pykvm_region *regions;
    uint32_t region_count;
    uint16_t cs;        /* the selector from STAR; SS is the next one */
    uint8_t shared;     /* nonzero: at `handler` others wait too, and get what is no SYSCALL */
};

/* One virtual CPU as the loop sees it.  Only the thread that runs it may touch it. */
struct pykvm_vcpu {
    /* The access of a return value of zero or above; Python reads the three at once. */
    uint64_t offset;
    uint64_t size;    /* in bytes: 1, 2, 4 or 8 */
    uint64_t value;   /* what was written; for a read, put the answer here */
    int32_t error;
    uint32_t attention; /* nonzero: come back before entering the guest again */
    uint8_t surface;  /* nonzero: every exit is PYKVM_EXIT, no map and no posting takes part */
    uint32_t watched; /* so many exits from now on set `attention` */
    uint32_t watched_idt; /* only those with an IDT in 64-bit mode, of this limit or more; 0: all */
    uint64_t runs;          /* KVM_RUN calls so far */
    uint64_t guest_cycles;  /* host TSC cycles spent in the guest and in this loop */
    uint64_t exits[128];
    struct pykvm_syscall *syscall; /* or NULL */
    struct pykvm_native *native;   /* what completes refused instructions that it knows, or NULL */
    int32_t refusal; /* of the last enter or step: one of enum pykvm_refusal, or 0 */
    struct pykvm_private *private_;
};

/*
 * The map from ports and addresses to slots (below 1 << 56).  Built once, then read by any number of
 * vCPUs.  Each of them keeps the maps that it may still read; pykvm_map_free() gives up the caller's.
 */
struct pykvm_map *pykvm_map_new(struct pykvm_shared *shared);
/*
 * With `posted`, writes are collected.  `table`, or NULL, has the registers of the range, whose
 * first address is the device's offset `bias`.  Returns 0, -EINVAL or -ENOMEM.
 */
int pykvm_map_add(struct pykvm_map *map, int space, uint64_t first, uint64_t last, uint64_t slot,
                  int posted, struct pykvm_table *table, uint64_t bias);
void pykvm_map_free(struct pykvm_map *map);

/* How many maps there are in this process. */
int64_t pykvm_maps(void);

/* `page` is the mapped kvm_run page; `ring` the coalesced-MMIO ring in the same mapping, or 0. */
struct pykvm_vcpu *pykvm_vcpu_new(int fd, void *page, void *ring, uint32_t ring_entries);
void pykvm_vcpu_free(struct pykvm_vcpu *vcpu);
void pykvm_set_map(struct pykvm_vcpu *vcpu, struct pykvm_map *map);

/*
 * Why a run cannot begin, or a vCPU cannot be entered.  For the last two the vCPU's `error` is
 * the errno.
 */
enum pykvm_refusal {
    PYKVM_BUSY = 1, /* it runs already */
    PYKVM_SHUT,     /* it was closed */
    PYKVM_FORKED,   /* it belongs to the process that this one was forked from */
    PYKVM_LATE,     /* the run that it was to be entered for is over */
    PYKVM_NO_SIGNAL, /* every real-time signal has a handler */
    PYKVM_NO_TIMER, /* timer_create() failed */
    PYKVM_NO_MASK,  /* KVM_SET_SIGNAL_MASK failed */
    PYKVM_SUCCEEDED /* another loop has taken the vCPU over from this one by hand */
};

/*
 * A machine's claim: one run of it at a time, from pykvm_begin() to pykvm_end().  hold.c calls these
 * with nothing of Python's in between, and calls them again while they return -1; with `wait` they
 * wait, but not for long.
 *
 * begin returns 0, -1 while a thread of the last run is still on its way out of a device, or a
 * refusal.  finish and end bar the vCPUs: from then on none enters the guest, and those inside are
 * taken out; they return 0 once every vCPU was left.  After end the next run may begin.
 */
struct pykvm_claim {
    uint64_t turn;    /* the number of the run that began last */
    uint64_t running; /* the same as long as its vCPUs may enter the guest, then 0 */
};
struct pykvm_claim *pykvm_claim_new(void);
void pykvm_claim_free(struct pykvm_claim *claim);
int pykvm_begin(struct pykvm_claim *claim, int wait);
int pykvm_finish(struct pykvm_claim *claim);
int pykvm_end(struct pykvm_claim *claim, int wait);

/* Whether the calling thread is one that runs the machine or one of its vCPUs. */
int pykvm_claim_is_mine(struct pykvm_claim *claim);

/*
 * No run begins from now on.  Returns whether one is in progress; with `wait` only after it has
 * ended or a while has passed.
 */
int pykvm_claim_shut(struct pykvm_claim *claim, int wait);

/* In the child of a fork: whatever another thread was about, here it is not. */
void pykvm_claim_forget(struct pykvm_claim *claim);

/* Put the functions of functions.h into the module pykvm._core.  Returns 0 or -1. */
int pykvm_add_functions(void);

/* Let this vCPU be entered for runs of `claim`.  Returns 0 or a negative errno. */
int pykvm_join(struct pykvm_vcpu *vcpu, struct pykvm_claim *claim);

/*
 * From enter to leave a vCPU belongs to the calling thread.  `deadline` is in CLOCK_MONOTONIC
 * nanoseconds; 0 means none.  `turn` is the run of the vCPU's claim, 0 if it is for none.  Returns 0 or
 * a refusal.  leave returns 0.
 *
 * The main thread keeps its signals; any other takes none between enter and leave but the kick's,
 * since only in the main thread Python acts upon them.
 */
int pykvm_enter(struct pykvm_vcpu *vcpu, uint64_t deadline, uint64_t turn);
int64_t pykvm_run(struct pykvm_vcpu *vcpu);
int pykvm_leave(struct pykvm_vcpu *vcpu);

/* As pykvm_run(), but outside the guest: wait until there is something to return for. */
int64_t pykvm_wait(struct pykvm_vcpu *vcpu);

enum pykvm_access_kind {
    PYKVM_NO_ACCESS,
    PYKVM_OUT,
    PYKVM_IN,
    PYKVM_STORE,
    PYKVM_LOAD,
    PYKVM_KINDS
};

/* A single access as the kvm_run page has it; what reads is to get all ones until it is answered. */
struct pykvm_access {
    int32_t kind;
    uint32_t size; /* 1 to 8 bytes */
    uint64_t address;
    uint8_t data[8]; /* what was written */
};

/*
 * A loop by hand: by_hand once, then step for each exit, which is enter, run and leave in one.  Between
 * two steps the thread owes nothing to the vCPU, and kicks are kept; one tick of the timer may come, which
 * the empty handler takes.  by_hand returns the number of the loop, above 0, or a refusal below 0; a step
 * for another loop than the last is refused.  With PYKVM_EXIT, `access` is what the exit is for, if it is
 * a single access.
 */
int64_t pykvm_by_hand(struct pykvm_vcpu *vcpu);
int64_t pykvm_step(struct pykvm_vcpu *vcpu, uint64_t deadline, uint64_t loop,
                   struct pykvm_access *access);
void pykvm_by_hand_ends(struct pykvm_vcpu *vcpu, uint64_t loop);

/* Whether the calling thread is between enter and leave. */
int pykvm_is_here(struct pykvm_vcpu *vcpu);
/* Whether another thread is. */
int pykvm_is_elsewhere(struct pykvm_vcpu *vcpu);

/*
 * From any thread, before what belongs to the vCPU is given back: no pykvm_enter() and no pykvm_run()
 * begins from now on (PYKVM_SHUT; PYKVM_ERROR with EBADF), and nothing here touches the kvm_run page or
 * the file descriptor.  Returns 1, having kicked the vCPU, while something still does: call again.
 */
int pykvm_shut(struct pykvm_vcpu *vcpu);

/* In the child of a fork: it is shut, and the calling thread gets back its signals. */
void pykvm_forget(struct pykvm_vcpu *vcpu);

/*
 * From any thread: take a run in progress out of the guest, if it is that one or `turn` is 0.  Returns
 * 0 if there was none.
 */
int pykvm_kick(struct pykvm_vcpu *vcpu, uint64_t turn);

/*
 * From any thread: set `attention`, and take the vCPU out of the guest for it.  Not lost if the
 * vCPU is not running: the next run begins with it.
 */
void pykvm_attend(struct pykvm_vcpu *vcpu);

/*
 * Between enter and leave, by the vCPU's own thread: come back with PYKVM_ALARM at this time, in
 * CLOCK_MONOTONIC nanoseconds; 0 for never.  A new run has no alarm.
 */
void pykvm_set_alarm(struct pykvm_vcpu *vcpu, uint64_t when);

/* KVM_INTERRUPT, by the vCPU's own thread.  Returns 0 or a negative errno. */
int pykvm_interrupt(struct pykvm_vcpu *vcpu, uint32_t vector);

/*
 * Let KVM finish the instruction of the last exit without entering the guest.  Returns 0, or
 * 1 if the instruction caused another exit (the next pykvm_run() returns it), or a negative errno:
 * EBUSY while a device owes the answer to a read, EBADF for a vCPU that is shut.
 */
int pykvm_complete(struct pykvm_vcpu *vcpu);

/*
 * Be done with the instruction of the last exit, whatever it still wants: what it writes goes nowhere
 * and what it reads is left to chance.  For a vCPU whose registers are all to be set.  Returns 0, or
 * -EBADF for a vCPU that is shut.
 */
int pykvm_abandon(struct pykvm_vcpu *vcpu);

/*
 * Whether the exit in the kvm_run page is the breakpoint on the #PF handler, or the end of a guest
 * without one, and was dealt with: the vCPU is set right for the next KVM_RUN.  0 also for an
 * ordinary page fault whose handler begins in a way that this does not know.  Needs the general and
 * system registers in the page.
 */
int pykvm_work_around_syscall(struct pykvm_syscall *syscall, void *page);

/*
 * Read guest-virtual memory, through the page tables of the system registers in the kvm_run page.
 * Returns 1, or 0 if any of it is not mapped.
 */
int pykvm_read_guest(const struct pykvm_syscall *syscall, const void *page, uint64_t address,
                     void *buffer, uint64_t size);

/*
 * A descriptor and what it belongs to.  The functions that open one store it here before they return:
 * an int that a system call has given to Python belongs to nothing until it is stored, and a signal's
 * handler may raise before that.  They return 0 or a negative errno.
 */
struct pykvm_descriptor {
    int32_t fd; /* -1: none */
};
int pykvm_open(struct pykvm_descriptor *descriptor, const char *path, int flags, unsigned mode);
int pykvm_open_memfd(struct pykvm_descriptor *descriptor, const char *name, unsigned flags);
/* Any ioctl that returns a descriptor, and KVM_CREATE_DEVICE, which stores it in its argument. */
int pykvm_open_ioctl(struct pykvm_descriptor *descriptor, int fd, uint64_t number, uint64_t argument);
int pykvm_open_device(struct pykvm_descriptor *descriptor, int vm, uint32_t type);
/* From any thread, any number of times. */
void pykvm_close(struct pykvm_descriptor *descriptor);

/*
 * Put what a file shares, or with -1 empty memory, in the place of pages that are mapped already.
 * Returns 0 or a negative errno.
 */
int pykvm_put_mapping(void *at, uint64_t size, int fd);

/* The signal that kicks use; pykvm gives it an empty handler, so that a stray one does nothing. */
int pykvm_kick_signal(void);

uint64_t pykvm_cycles(void);

/* Executes single instructions of a guest's on this processor (native.c).  One thread uses it. */
enum { PYKVM_STUBS = 65536 /* bytes of code */ };

/* What state an instruction uses. */
enum pykvm_kind { PYKVM_X87, PYKVM_MMX, PYKVM_BOTH, PYKVM_SSE };

/*
 * An instruction in 64-bit code that was done once, at `rip`: the next time it is done in C.
 * Registers have their numbers of ModRM; 255 is none, and 16 as a base is RIP.
 */
struct pykvm_learnt {
    uint64_t rip;
    uint64_t count; /* how often it was done in C */
    int64_t displacement;
    uint32_t place; /* of its code */
    uint8_t raw[15];
    uint8_t length; /* of the instruction; 0 for an entry without one */
    uint8_t kind;
    uint8_t size;   /* of the operand in memory */
    uint8_t store;
    uint8_t aligned;
    uint8_t general; /* the register that RAX stands for */
    uint8_t memory;
    uint8_t base, index, scale;
    uint8_t segment; /* 1: FS, 2: GS */
    uint16_t opcode; /* x87's FOP */
};

enum { PYKVM_LEARNT = 4096 /* entries; an instruction is in the one that its RIP says, modulo that */ };
struct pykvm_native_private;
struct pykvm_native {
    /* The registers that the code may use, before and after; of RFLAGS, the status flags. */
    uint64_t rax, rcx, rdx, rflags;
    uint64_t entry;
    uint8_t *state;   /* x87, SSE and AVX, as KVM_GET_XSAVE gives them: 4096 bytes */
    uint8_t *scratch; /* 4096 bytes, PYKVM_STUBS after the start of the code */
    struct pykvm_learnt *learnt;
    const struct pykvm_region *regions; /* guest RAM, and nothing that cannot be written */
    uint32_t region_count;
    uint32_t breakpoint_count;
    uint64_t breakpoints[4]; /* linear addresses at which the guest has to be entered */
    uint64_t nanoseconds;    /* spent in pykvm_native_exit() on instructions that it did */
    struct pykvm_native_private *private_;
};

/* NULL where the host has no XSAVE, or allows no new code. */
struct pykvm_native *pykvm_native_new(void);
void pykvm_native_free(struct pykvm_native *native);

/* Put code that ends with RET `at` bytes after the start.  Returns 0 or a negative errno. */
int pykvm_native_put(struct pykvm_native *native, uint32_t at, const void *code, uint32_t size);

/* Run it.  Returns 0, or -EINVAL if `state` is not sound. */
int pykvm_native_run(struct pykvm_native *native, uint32_t at);

/*
 * Run it in a process of its own, that shares the memory.  Returns 0, the signal that it raised, 255
 * if `state` is not sound, or a negative errno.
 */
int pykvm_native_try(struct pykvm_native *native, uint32_t at);

/*
 * Whether the exit in the kvm_run page is an instruction that KVM refused and that was learnt, and
 * was done, with those after it that were learnt, too: the vCPU is set right for the next KVM_RUN.
 * 0 for what Python has to look at: faults, devices, modes other than 64-bit code.  A negative errno
 * if KVM does not take the state back.  Needs all registers and the events in the page.
 */
int pykvm_native_exit(struct pykvm_native *native, int vcpu_fd, void *page);

/*
 * The same on the vector state in `native`, whatever the exit: how many instructions were done.  The
 * registers in the page are changed.
 */
int pykvm_native_steps(struct pykvm_native *native, void *page);
#endif
