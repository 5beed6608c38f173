/*
 * Accesses that need no Python: what devices have published of their registers, writes that wait to
 * be handed over, and accesses that no device claims.  build.py hands this file to cffi, too.
 */
#ifndef PYKVM_PUBLISHED_H
#define PYKVM_PUBLISHED_H
#include <stdint.h>

struct pykvm_line; /* line.h */

/* One access that was collected; Python reads these with struct as "<QIIQQ". */
struct pykvm_write {
    uint64_t offset; /* from the start of the range; of a table's registers, as the device sees it */
    uint32_t size;   /* in bytes */
    uint32_t read;   /* nonzero: a read, which was given `value` */
    uint64_t value;
    uint64_t when; /* guest time if the rule is `timed`, else 0 */
};

/* So many of them in a row belong to the same slot, or to the same table: then that is its tag. */
struct pykvm_batch {
    uint64_t slot;
    uint64_t count;
};

/* An access that no device claimed. */
struct pykvm_dropped {
    uint64_t address;
    uint64_t value; /* what was written */
    uint32_t size;
    uint8_t space; /* PYKVM_PIO or PYKVM_MMIO */
};

struct pykvm_shared_private;

/* What the vCPUs of a machine share. */
struct pykvm_shared {
    /* What pykvm_take() took last.  One thread at a time may look at it. */
    struct pykvm_write *writes;
    struct pykvm_batch *batches;
    uint32_t write_count;
    uint32_t batch_count;

    uint8_t open_bus; /* nonzero: what no device claims is dropped, and reads give all ones */
    uint8_t coalesces; /* nonzero: the kernel has been told to collect writes, so that its ring may have some */
    uint8_t prompt; /* nonzero: no write is put off, but those to devices with `posted` */

    /*
     * Of this run, reads at 0 and writes at 1: how many were dropped, and the first at each of the
     * first places.  Python sets the counts to zero where a run begins.
     */
    uint64_t drops[2];
    uint32_t place_counts[2];
    struct pykvm_dropped places[2][8];

    struct pykvm_shared_private *private_;
};

struct pykvm_shared *pykvm_shared_new(void);
/* Gives up the caller's hold; tables and maps have their own. */
void pykvm_shared_free(struct pykvm_shared *shared);

/* From any thread: guest time is CLOCK_MONOTONIC less `base`, in ns; INT64_MIN for not known. */
void pykvm_set_time(struct pykvm_shared *shared, int64_t base);

/* Take what was collected: from now on it is in `writes` and `batches`.  Returns `write_count`. */
uint32_t pykvm_take(struct pykvm_shared *shared);
/* How many accesses wait to be taken. */
uint32_t pykvm_waiting(const struct pykvm_shared *shared);
/* Collect `count` writes of `size` bytes each, or none: returns 0 if there is no room for all. */
int pykvm_collect(struct pykvm_shared *shared, uint64_t slot, uint64_t offset, uint32_t size,
                  const void *data, uint32_t count);
/* So many accesses more that no device claimed. */
void pykvm_drop(struct pykvm_shared *shared, int space, int is_write, uint64_t address,
                uint32_t size, uint64_t value, uint64_t count);

enum pykvm_read_rule {
    PYKVM_ASK = 0, /* the device answers: `read` or `write` is called */
    PYKVM_VALUE = 1,
    /*
     * `base` + `step` * n, where n is `value` + guest time * `multiply` / `divide`, modulo 1 << 64
     * and then `modulo`, if that is not 0.
     */
    PYKVM_COUNTER = 2,
    PYKVM_CAPTURED = 3 /* what a write has captured */
};

enum pykvm_write_rule {
    PYKVM_POST = 1,
    PYKVM_TAKE = 2 /* it is done with: the device is never told */
};

enum {
    PYKVM_ALL_BANKS = 0xffff,
    PYKVM_SAME_BANK = -1,
    PYKVM_WRITTEN_BANK = -2, /* the one whose number was written, modulo the number of banks */
    PYKVM_NO_REGISTER = 0xffff
};

/* What becomes of accesses to one register, while one bank is chosen. */
struct pykvm_rule {
    uint64_t value;
    uint64_t until; /* from this guest time on reads ask; UINT64_MAX for never */
    uint64_t multiply;
    uint64_t divide;
    uint64_t modulo;
    uint64_t base;
    int64_t step;
    uint64_t mask;    /* what of the value a read gives */
    uint64_t within;  /* ns that a posted access may wait; 0 for no haste */
    uint32_t most;    /* so many writes in a row, with no read posted between; 0 for what fits */
    int16_t after_read; /* the bank that is chosen then, or one of the above */
    int16_t after_write;
    uint16_t captures; /* a write taken here captures what this register gives, or PYKVM_NO_REGISTER */
    uint8_t shift;     /* reads give the masked value from this bit on; below 64 */
    uint8_t reads;
    uint8_t writes;
    uint8_t told;   /* nonzero: reads that were answered here are posted */
    uint8_t stores; /* nonzero: what is posted is what reads give from then on, in this bank */
    uint8_t timed;  /* nonzero: what is posted bears its guest time */
    uint8_t prompt[32]; /* a bit for each low byte of a write that asks all the same */
};

/* The registers of one device. */
struct pykvm_table;

/*
 * `length` is the number of offsets; posted accesses bear `tag`.  NULL without memory or if a number
 * is out of range.
 */
struct pykvm_table *pykvm_table_new(struct pykvm_shared *shared, uint64_t tag, uint32_t length,
                                    uint32_t registers, uint32_t banks);
void pykvm_table_free(struct pykvm_table *table);

/* Register `number` is the `size` bytes at `offset`.  Returns 0, or -EINVAL.  Before the table is used. */
int pykvm_table_place(struct pykvm_table *table, uint32_t number, uint32_t offset, uint32_t size);

/*
 * From any thread: this rule holds from now on, for `bank` or PYKVM_ALL_BANKS; NULL is for one that
 * always asks.
 * Returns 1 if posted accesses of this device wait, to be handed over soon; 0; or -EINVAL.
 */
int pykvm_table_set(struct pykvm_table *table, uint32_t number, uint32_t bank,
                    const struct pykvm_rule *rule);
int pykvm_table_choose(struct pykvm_table *table, uint32_t bank);
uint32_t pykvm_table_bank(const struct pykvm_table *table);

/*
 * Choose a bank, and say which one it was until then and what was captured last, all at one moment:
 * what the guest did to the registers before it is in these two, what it does later goes by `bank`.
 * Returns as pykvm_table_choose().
 */
int pykvm_table_exchange(struct pykvm_table *table, uint32_t bank, uint32_t *before,
                         uint64_t *captured);

/*
 * Choose a bank, and return how many writes were taken here since pykvm_table_choose(), doubled, plus
 * what that returns; or -EINVAL.  It may be asked again, until a bank is chosen.
 */
int64_t pykvm_table_recall(struct pykvm_table *table, uint32_t bank);

/*
 * The table drives `line`, or no line any more (NULL, which leaves it at its level): while bank n is
 * chosen it has the level of bit n in `levels`.  So a table of a line has 64 banks at most.
 * Returns 0 or -EINVAL.
 */
int pykvm_table_wire(struct pykvm_table *table, struct pykvm_line *line, uint64_t levels);
/* Other levels and, unless it is PYKVM_ALL_BANKS, another bank.  Returns as pykvm_table_choose(). */
int pykvm_table_drive(struct pykvm_table *table, uint64_t levels, uint32_t bank);
/* Choose a bank, with these levels for the banks, and leave the line as it is.  Returns 0 or -EINVAL. */
int pykvm_table_restore(struct pykvm_table *table, uint64_t levels, uint32_t bank);
/* If `bank` is chosen, give the line the level of another one for a moment. */
int pykvm_table_pulse(struct pykvm_table *table, uint32_t bank, uint32_t other);

enum pykvm_answer {
    PYKVM_UNANSWERED = 0,
    PYKVM_ANSWERED = 1,
    PYKVM_HAND_OVER = 2, /* answered, and what waits is to be handed over now */
    PYKVM_TAKEN = 3      /* answered, and the device will not hear of it */
};

/* An access as a vCPU makes it.  `*within` is set if what was posted may wait so long only. */
int pykvm_table_read(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t *value,
                     uint64_t *within);
int pykvm_table_write(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t value,
                      uint64_t *within);
#endif
