/*
 * Accesses that need no Python (published.h).  All of it is under one lock a machine, held for some
 * instructions only: vCPUs answer while any thread publishes, and what they post has one order.
 */
#define _GNU_SOURCE
#include "published.h"

#include "shared.h"

#include <errno.h>
#include <stdlib.h>

#define NO_TIME INT64_MIN
#define OFFSETS (1u << 16)

struct collection {
    struct pykvm_write *writes;
    struct pykvm_batch *batches;
    uint32_t write_count;
    uint32_t batch_count;
};

struct pykvm_shared_private {
    uint32_t lock;
    struct collection open;  /* what is being collected */
    struct collection taken; /* what Python reads */
    void *block;             /* where both are, in one piece: a call of the kernel's for all */
    uint64_t generation;     /* how often it was taken */
    int64_t base;
    uint64_t holders;
};

/* In one piece: each further page that an exit touches costs a TLB miss. */
struct whole {
    struct pykvm_shared shared;
    struct pykvm_shared_private private_;
};

struct place {
    uint16_t offset;
    uint8_t size;
};

struct pykvm_table {
    struct pykvm_shared *shared;
    uint64_t tag;
    uint64_t holders;
    uint64_t generation; /* in which it last posted */
    uint32_t row;        /* how many writes in a row it has posted in that one */
    uint32_t length;
    uint32_t registers;
    uint32_t banks;
    uint32_t bank;
    uint64_t captured;
    uint64_t taken; /* how many writes, since a bank was chosen */
    struct pykvm_line *line; /* or NULL */
    uint64_t levels;
    uint16_t *at; /* by offset: the number of the register, plus one */
    struct place *places;
    struct pykvm_rule *rules; /* by register, then by bank */
};

/* Pages that no write ever reaches stay unmapped. */
static int new_collections(struct pykvm_shared_private *p)
{
    struct pykvm_write *writes = malloc(2 * WRITES * (sizeof *writes + sizeof(struct pykvm_batch)));
    struct pykvm_batch *batches = (struct pykvm_batch *)(writes + 2 * WRITES);

    if (!writes)
        return 0;
    p->block = writes;
    p->open = (struct collection){.writes = writes, .batches = batches};
    p->taken = (struct collection){.writes = writes + WRITES, .batches = batches + WRITES};
    return 1;
}

struct pykvm_shared *pykvm_shared_new(void)
{
    struct whole *whole = calloc(1, sizeof *whole);
    struct pykvm_shared *shared;
    struct pykvm_shared_private *p;

    if (!whole)
        return NULL;
    shared = &whole->shared;
    p = shared->private_ = &whole->private_;
    p->base = NO_TIME;
    p->holders = 1;
    p->generation = 1;
    if (!new_collections(p)) {
        pykvm_shared_free(shared);
        return NULL;
    }
    return shared;
}

void pykvm_shared_hold(struct pykvm_shared *shared)
{
    __atomic_add_fetch(&shared->private_->holders, 1, __ATOMIC_RELAXED);
}

void pykvm_shared_free(struct pykvm_shared *shared)
{
    struct pykvm_shared_private *p;

    if (!shared || __atomic_sub_fetch(&shared->private_->holders, 1, __ATOMIC_ACQ_REL))
        return;
    p = shared->private_;
    free(p->block);
    free(shared); /* it begins the struct whole */
}

void pykvm_set_time(struct pykvm_shared *shared, int64_t base)
{
    struct pykvm_shared_private *p = shared->private_;

    lock(&p->lock);
    p->base = base;
    unlock(&p->lock);
}

/* Guest time, or 0 where it is not known.  Under the lock. */
static int guest_time(const struct pykvm_shared_private *p, uint64_t *time)
{
    if (p->base == NO_TIME)
        return 0;
    *time = now_ns() - (uint64_t)p->base;
    return 1;
}

uint32_t pykvm_take(struct pykvm_shared *shared)
{
    struct pykvm_shared_private *p = shared->private_;
    struct collection empty;

    lock(&p->lock);
    empty = p->taken;
    p->taken = p->open;
    p->open = empty;
    __atomic_store_n(&p->open.write_count, 0, __ATOMIC_RELAXED);
    p->open.batch_count = 0;
    p->generation++;
    unlock(&p->lock);
    shared->writes = p->taken.writes;
    shared->batches = p->taken.batches;
    shared->write_count = p->taken.write_count;
    shared->batch_count = p->taken.batch_count;
    return shared->write_count;
}

uint32_t pykvm_waiting(const struct pykvm_shared *shared)
{
    return __atomic_load_n(&shared->private_->open.write_count, __ATOMIC_RELAXED);
}

/* Under the lock, and with room for it. */
static void collect(struct pykvm_shared_private *p, uint64_t slot, const struct pykvm_write *write)
{
    struct collection *open = &p->open;
    struct pykvm_batch *batch = &open->batches[open->batch_count];

    open->writes[open->write_count] = *write;
    __atomic_store_n(&open->write_count, open->write_count + 1, __ATOMIC_RELAXED);
    if (open->batch_count && batch[-1].slot == slot) {
        batch[-1].count++;
    } else {
        *batch = (struct pykvm_batch){.slot = slot, .count = 1};
        open->batch_count++;
    }
}

int pykvm_collect(struct pykvm_shared *shared, uint64_t slot, uint64_t offset, uint32_t size,
                  const void *data, uint32_t count)
{
    struct pykvm_shared_private *p = shared->private_;
    struct pykvm_write write = {.offset = offset, .size = size};
    int fits;

    lock(&p->lock);
    fits = count <= WRITES - p->open.write_count;
    for (uint32_t i = 0; fits && i < count; i++) {
        write.value = load((const uint8_t *)data + (size_t)i * size, size);
        collect(p, slot, &write);
    }
    unlock(&p->lock);
    return fits;
}

/* Count it among those of this run, and keep it if nothing was dropped there yet. */
static void note_drop(struct pykvm_shared *shared, int space, int is_write, uint64_t address,
                      uint32_t size, uint64_t value, uint64_t count)
{
    struct pykvm_dropped *places = shared->places[is_write];
    uint32_t known = shared->place_counts[is_write];

    shared->drops[is_write] += count;
    for (uint32_t i = 0; i < known; i++)
        if (places[i].address == address && places[i].space == space)
            return;
    if (known == sizeof shared->places[0] / sizeof *places)
        return;
    places[known] = (struct pykvm_dropped){
        .address = address, .value = value, .size = size, .space = (uint8_t)space};
    shared->place_counts[is_write]++;
}

void pykvm_drop(struct pykvm_shared *shared, int space, int is_write, uint64_t address,
                uint32_t size, uint64_t value, uint64_t count)
{
    struct pykvm_shared_private *p = shared->private_;

    lock(&p->lock);
    note_drop(shared, space, !!is_write, address, size, value, count);
    unlock(&p->lock);
}

struct pykvm_table *pykvm_table_new(struct pykvm_shared *shared, uint64_t tag, uint32_t length,
                                    uint32_t registers, uint32_t banks)
{
    struct pykvm_table *table;

    if (!length || length > OFFSETS || !registers || registers > OFFSETS - 1 || !banks ||
        banks > 256)
        return NULL;
    table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    table->holders = 1;
    table->shared = shared;
    pykvm_shared_hold(shared);
    table->tag = tag;
    table->length = length;
    table->registers = registers;
    table->banks = banks;
    table->at = calloc(length, sizeof *table->at);
    table->places = calloc(registers, sizeof *table->places);
    table->rules = calloc((size_t)registers * banks, sizeof *table->rules);
    if (!table->at || !table->places || !table->rules) {
        pykvm_table_free(table);
        return NULL;
    }
    return table;
}

void pykvm_table_hold(struct pykvm_table *table)
{
    __atomic_add_fetch(&table->holders, 1, __ATOMIC_RELAXED);
}

void pykvm_table_free(struct pykvm_table *table)
{
    if (!table || __atomic_sub_fetch(&table->holders, 1, __ATOMIC_ACQ_REL))
        return;
    free(table->at);
    free(table->places);
    free(table->rules);
    pykvm_line_free(table->line);
    pykvm_shared_free(table->shared);
    free(table);
}

int pykvm_table_place(struct pykvm_table *table, uint32_t number, uint32_t offset, uint32_t size)
{
    if (number >= table->registers || !size || size > 8 || offset >= table->length ||
        size > table->length - offset)
        return -EINVAL;
    table->places[number] = (struct place){.offset = (uint16_t)offset, .size = (uint8_t)size};
    for (uint32_t i = offset; i < offset + size; i++)
        table->at[i] = (uint16_t)(number + 1);
    return 0;
}

static int posts_wait(const struct pykvm_table *table)
{
    return table->generation == table->shared->private_->generation;
}

static int is_sound(const struct pykvm_table *table, const struct pykvm_rule *rule)
{
    return rule->after_read < (int)table->banks && rule->after_write < (int)table->banks &&
           (rule->reads != PYKVM_COUNTER || rule->divide) && rule->shift < 64 &&
           (rule->captures == PYKVM_NO_REGISTER || rule->captures < table->registers);
}

int pykvm_table_set(struct pykvm_table *table, uint32_t number, uint32_t bank,
                    const struct pykvm_rule *rule)
{
    static const struct pykvm_rule ask;
    struct pykvm_shared_private *p = table->shared->private_;
    int wait;

    if (number >= table->registers || (bank >= table->banks && bank != PYKVM_ALL_BANKS) ||
        (rule && !is_sound(table, rule)))
        return -EINVAL;
    lock(&p->lock);
    for (uint32_t i = bank == PYKVM_ALL_BANKS ? 0 : bank; i < table->banks; i++) {
        table->rules[(size_t)number * table->banks + i] = rule ? *rule : ask;
        if (i == bank)
            break;
    }
    wait = posts_wait(table);
    unlock(&p->lock);
    return wait;
}

/*
 * Under the lock.  What KVM_IRQ_LINE could fail for, a VM without interrupt controllers or a number too
 * large, is found when the line is made.
 */
static void drive(const struct pykvm_table *table, uint32_t bank)
{
    if (table->line)
        pykvm_line_set(table->line, table->levels >> bank & 1);
}

static void go_to(struct pykvm_table *table, uint32_t bank)
{
    table->bank = bank;
    drive(table, bank);
}

int pykvm_table_wire(struct pykvm_table *table, struct pykvm_line *line, uint64_t levels)
{
    struct pykvm_shared_private *p = table->shared->private_;
    struct pykvm_line *before;

    if (line && table->banks > 64)
        return -EINVAL;
    if (line)
        pykvm_line_hold(line);
    lock(&p->lock);
    before = table->line;
    table->line = line;
    table->levels = levels;
    drive(table, table->bank);
    unlock(&p->lock);
    pykvm_line_free(before);
    return 0;
}

int pykvm_table_drive(struct pykvm_table *table, uint64_t levels, uint32_t bank)
{
    struct pykvm_shared_private *p = table->shared->private_;
    int wait;

    if (bank >= table->banks && bank != PYKVM_ALL_BANKS)
        return -EINVAL;
    lock(&p->lock);
    table->levels = levels;
    go_to(table, bank == PYKVM_ALL_BANKS ? table->bank : bank);
    wait = posts_wait(table);
    unlock(&p->lock);
    return wait;
}

int pykvm_table_pulse(struct pykvm_table *table, uint32_t bank, uint32_t other)
{
    struct pykvm_shared_private *p = table->shared->private_;

    if (bank >= table->banks || other >= table->banks)
        return -EINVAL;
    lock(&p->lock);
    if (table->bank == bank) {
        drive(table, other);
        drive(table, bank);
    }
    unlock(&p->lock);
    return 0;
}

int pykvm_table_restore(struct pykvm_table *table, uint64_t levels, uint32_t bank)
{
    struct pykvm_shared_private *p = table->shared->private_;

    if (bank >= table->banks)
        return -EINVAL;
    lock(&p->lock);
    table->levels = levels;
    table->bank = bank;
    unlock(&p->lock);
    return 0;
}

int pykvm_table_exchange(struct pykvm_table *table, uint32_t bank, uint32_t *before,
                         uint64_t *captured)
{
    struct pykvm_shared_private *p = table->shared->private_;
    int wait;

    if (bank >= table->banks)
        return -EINVAL;
    lock(&p->lock);
    *before = table->bank;
    *captured = table->captured;
    go_to(table, bank);
    wait = posts_wait(table);
    unlock(&p->lock);
    return wait;
}

int pykvm_table_choose(struct pykvm_table *table, uint32_t bank)
{
    struct pykvm_shared_private *p = table->shared->private_;
    int wait;

    if (bank >= table->banks)
        return -EINVAL;
    lock(&p->lock);
    table->taken = 0;
    go_to(table, bank);
    wait = posts_wait(table);
    unlock(&p->lock);
    return wait;
}

int64_t pykvm_table_recall(struct pykvm_table *table, uint32_t bank)
{
    struct pykvm_shared_private *p = table->shared->private_;
    int64_t answer;

    if (bank >= table->banks)
        return -EINVAL;
    lock(&p->lock);
    go_to(table, bank);
    answer = (int64_t)table->taken << 1 | posts_wait(table);
    unlock(&p->lock);
    return answer;
}

uint32_t pykvm_table_bank(const struct pykvm_table *table)
{
    struct pykvm_shared_private *p = table->shared->private_;
    uint32_t bank;

    lock(&p->lock);
    bank = table->bank;
    unlock(&p->lock);
    return bank;
}

/* The register that holds the whole access, or NULL. */
static const struct place *place_of(const struct pykvm_table *table, uint64_t offset, uint32_t size)
{
    const struct place *place;

    if (offset >= table->length || !table->at[offset])
        return NULL;
    place = &table->places[table->at[offset] - 1];
    return offset + size <= (uint64_t)place->offset + place->size ? place : NULL;
}

static struct pykvm_rule *rule_of(struct pykvm_table *table, size_t number)
{
    return &table->rules[number * table->banks + table->bank];
}

/* What a read of the whole register gives, but for the shift: 0 if the device has to be asked. */
static int value_of(const struct pykvm_table *table, const struct pykvm_rule *rule, uint64_t *now,
                    uint64_t *value)
{
    uint64_t found = rule->reads == PYKVM_CAPTURED ? table->captured : rule->value;

    if (rule->reads == PYKVM_ASK)
        return 0;
    if (rule->reads == PYKVM_COUNTER || rule->until != UINT64_MAX) {
        if (!guest_time(table->shared->private_, now) || *now >= rule->until)
            return 0;
    }
    if (rule->reads == PYKVM_COUNTER) {
        found += (uint64_t)((unsigned __int128)*now * rule->multiply / rule->divide);
        if (rule->modulo)
            found %= rule->modulo;
        found = rule->base + (uint64_t)rule->step * found;
    }
    *value = found & rule->mask;
    return 1;
}

static void change_bank(struct pykvm_table *table, int16_t next, uint64_t written)
{
    if (next >= 0)
        go_to(table, (uint32_t)next);
    else if (next == PYKVM_WRITTEN_BANK)
        go_to(table, (uint32_t)(written % table->banks));
}

/* Returns PYKVM_ANSWERED or PYKVM_HAND_OVER. */
static int post(struct pykvm_table *table, const struct pykvm_rule *rule,
                const struct pykvm_write *write, uint64_t *within)
{
    struct pykvm_shared_private *p = table->shared->private_;

    if (!posts_wait(table))
        table->row = 0;
    table->generation = p->generation;
    table->row = write->read ? 0 : table->row + 1;
    collect(p, table->tag, write);
    if (rule->within)
        *within = rule->within;
    return rule->most && table->row >= rule->most ? PYKVM_HAND_OVER : PYKVM_ANSWERED;
}

static int read_locked(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t *value,
                       uint64_t *within)
{
    struct pykvm_shared_private *p = table->shared->private_;
    const struct place *place = place_of(table, offset, size);
    const struct pykvm_rule *rule;
    struct pykvm_write write = {.offset = offset, .size = size, .read = 1};
    uint64_t now = 0, found;
    int answer = PYKVM_ANSWERED;

    if (!place)
        return PYKVM_UNANSWERED;
    rule = rule_of(table, (size_t)(place - table->places));
    if ((rule->told && p->open.write_count >= WRITES) || !value_of(table, rule, &now, &found))
        return PYKVM_UNANSWERED;
    *value = found >> rule->shift >> 8 * (offset - place->offset) & ones(size);
    if (rule->told) {
        write.value = *value;
        write.when = now;
        answer = post(table, rule, &write, within);
    }
    change_bank(table, rule->after_read, 0);
    return answer;
}

int pykvm_table_read(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t *value,
                     uint64_t *within)
{
    uint32_t *word = &table->shared->private_->lock;
    int answer;

    lock(word);
    answer = read_locked(table, offset, size, value, within);
    unlock(word);
    return answer;
}

static int asks_for(const struct pykvm_table *table, const struct pykvm_rule *rule, uint64_t value)
{
    return !rule->writes || (rule->writes == PYKVM_POST && table->shared->prompt) ||
           rule->prompt[(value & 0xff) / 8] >> value % 8 & 1;
}

static int take(struct pykvm_table *table, const struct pykvm_rule *rule)
{
    uint64_t now;

    if (rule->captures != PYKVM_NO_REGISTER &&
        !value_of(table, rule_of(table, rule->captures), &now, &table->captured))
        return PYKVM_UNANSWERED;
    table->taken++;
    return PYKVM_TAKEN;
}

static int write_locked(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t value,
                        uint64_t *within, int forced)
{
    struct pykvm_shared_private *p = table->shared->private_;
    const struct place *place = place_of(table, offset, size);
    struct pykvm_rule *rule;
    struct pykvm_write write = {.offset = offset, .size = size, .value = value & ones(size)};
    int answer;

    if (!place || p->open.write_count >= WRITES)
        return PYKVM_UNANSWERED;
    rule = rule_of(table, (size_t)(place - table->places));
    if (!forced && (asks_for(table, rule, value) ||
                    (rule->timed && !guest_time(p, &write.when))))
        return PYKVM_UNANSWERED;
    answer = rule->writes == PYKVM_TAKE && !forced ? take(table, rule)
                                                   : post(table, rule, &write, within);
    if (answer == PYKVM_UNANSWERED)
        return answer;
    if (rule->stores) {
        uint64_t shift = 8 * (offset - place->offset);

        rule->value = (rule->value & ~(ones(size) << shift)) | write.value << shift;
    }
    change_bank(table, rule->after_write, write.value);
    return answer;
}

int pykvm_table_write(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t value,
                      uint64_t *within)
{
    uint32_t *word = &table->shared->private_->lock;
    int answer;

    lock(word);
    answer = write_locked(table, offset, size, value, within, 0);
    unlock(word);
    return answer;
}

void pykvm_table_post(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t value)
{
    uint32_t *word = &table->shared->private_->lock;
    uint64_t within;

    lock(word);
    write_locked(table, offset, size, value, &within, 1);
    unlock(word);
}
