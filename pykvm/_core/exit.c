/* One exit: what can be done with it without Python. */
#include "vcpu.h"

#include <string.h>

/* So much longer may what was posted wait while the guest has interrupts off. */
#define PATIENCE 20
/* So many reads in a row that were answered here: the guest waits, and what it wrote is due. */
#define POLLS 64

/*
 * Writes that the kernel coalesced happened before the exit that KVM_RUN just returned.  The ring
 * is shared with the kernel, not with another vCPU: a machine with several does not coalesce.
 */
void drain_ring(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    struct kvm_coalesced_mmio_ring *ring = p->ring;
    uint32_t first = ring->first;
    uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);

    if (first >= p->ring_entries || last >= p->ring_entries || p->ring_entries > 512)
        return;
    while (first != last) {
        const struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[first];
        int space = entry->pio ? PYKVM_PIO : PYKVM_MMIO;
        const struct range *range = map_find(p, space, entry->phys_addr, entry->len);
        uint64_t at = range ? entry->phys_addr - range->first : 0;

        if (range && range->table)
            pykvm_table_post(range->table, range->bias + at, entry->len,
                             load(entry->data, entry->len));
        else if (range)
            pykvm_collect(p->shared, range->slot, at, entry->len, entry->data, 1);
        first = (first + 1) % p->ring_entries;
    }
    __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
}

static int64_t hand_out(struct pykvm_vcpu *v, const struct range *range, uint64_t address,
                        void *data, uint32_t size, int is_write)
{
    v->offset = address - range->first;
    v->size = size;
    if (is_write) {
        v->value = load(data, size);
        return range->slot;
    }
    /* Until it is answered, a read gives all ones, as on an open bus. */
    v->value = UINT64_MAX;
    v->private_->answer = data;
    return PYKVM_READ - (int64_t)range->slot;
}

/*
 * What was posted may wait so long only: an interrupt hangs on it.  With interrupts off that cannot
 * be taken yet.
 */
static void flush_within(struct pykvm_private *p, uint64_t within)
{
    uint64_t now;

    if (!within || p->flush)
        return;
    now = now_ns();
    p->flush = now + (p->run->if_flag ? within : within * PATIENCE);
    if (p->flush < p->expiry || p->expiry <= now)
        arm(p, now);
}

/* What the table of the range's device makes of an access: a code, or 0 if it has to be asked. */
static int64_t take_published(struct pykvm_vcpu *v, const struct range *range, uint64_t address,
                              void *data, uint32_t size, int is_write)
{
    struct pykvm_private *p = v->private_;
    uint64_t offset = range->bias + (address - range->first), value = 0, within = 0;
    int answer;

    if (is_write) {
        answer = pykvm_table_write(range->table, offset, size, load(data, size), &within);
        /* What is taken is a part of polling, as a latch command before a count is read. */
        if (answer != PYKVM_TAKEN)
            p->polls = 0;
    } else {
        answer = pykvm_table_read(range->table, offset, size, &value, &within);
        if (answer)
            memcpy(data, &value, size);
        if (answer && p->polls++ >= POLLS) {
            p->polls = 0;
            answer = PYKVM_HAND_OVER;
        }
    }
    flush_within(p, within);
    if (answer == PYKVM_HAND_OVER && pykvm_waiting(p->shared))
        return HAND_OVER;
    return answer ? REENTER : 0;
}

static int64_t drop(struct pykvm_private *p, int space, uint64_t address, void *data, uint32_t size,
                    uint32_t count, int is_write)
{
    pykvm_drop(p->shared, space, is_write, address, size, is_write ? load(data, size) : 0, count);
    if (!is_write)
        memset(data, 0xff, (size_t)size * count);
    return REENTER;
}

/* Whether it is the access again that no device had a part of. */
static int same_hole(const struct pykvm_private *p, int space, uint64_t address, uint32_t size)
{
    return p->hole[space].address == address && p->hole[space].size == size;
}

/* No range holds all of the access.  If no device has any of it, it may be dropped here. */
static int64_t take_unclaimed(struct pykvm_vcpu *v, int space, uint64_t address, void *data,
                              uint32_t size, uint32_t count, int is_write)
{
    struct pykvm_private *p = v->private_;

    if (!p->shared->open_bus || map_claimed(p->map, space, address, size))
        return PYKVM_EXIT;
    p->hole[space].address = address;
    p->hole[space].size = size;
    return drop(p, space, address, data, size, count, is_write);
}

static int64_t take_io(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    struct kvm_run *run = p->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    int is_write = run->io.direction == KVM_EXIT_IO_OUT;
    const struct range *range;

    if (same_hole(p, PYKVM_PIO, run->io.port, run->io.size))
        return drop(p, PYKVM_PIO, run->io.port, data, run->io.size, run->io.count, is_write);
    range = map_find(p, PYKVM_PIO, run->io.port, run->io.size);
    if (!range)
        return take_unclaimed(v, PYKVM_PIO, run->io.port, data, run->io.size, run->io.count,
                              is_write);
    if (is_write && range->posted &&
        pykvm_collect(p->shared, range->slot, run->io.port - range->first, run->io.size, data,
                      run->io.count))
        return REENTER;
    if (run->io.count != 1)
        return PYKVM_EXIT;
    if (range->table) {
        int64_t code = take_published(v, range, run->io.port, data, run->io.size, is_write);

        if (code)
            return code;
    }
    return hand_out(v, range, run->io.port, data, run->io.size, is_write);
}

static int64_t take_mmio(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    struct kvm_run *run = p->run;
    uint64_t address = run->mmio.phys_addr;
    const struct range *range;

    /* An access across two pages comes in parts of any size: the bus cuts those up. */
    if (!run->mmio.len || run->mmio.len > 8 || run->mmio.len & (run->mmio.len - 1))
        return PYKVM_EXIT;
    if (same_hole(p, PYKVM_MMIO, address, run->mmio.len))
        return drop(p, PYKVM_MMIO, address, run->mmio.data, run->mmio.len, 1, run->mmio.is_write);
    range = map_find(p, PYKVM_MMIO, address, run->mmio.len);
    if (!range)
        return take_unclaimed(v, PYKVM_MMIO, address, run->mmio.data, run->mmio.len, 1,
                              run->mmio.is_write);
    if (run->mmio.is_write && range->posted &&
        pykvm_collect(p->shared, range->slot, address - range->first, run->mmio.len,
                      run->mmio.data, 1))
        return REENTER;
    if (range->table) {
        int64_t code = take_published(v, range, address, run->mmio.data, run->mmio.len,
                                      run->mmio.is_write);

        if (code)
            return code;
    }
    return hand_out(v, range, address, run->mmio.data, run->mmio.len, run->mmio.is_write);
}

static void note(struct pykvm_access *access, uint64_t address, void *data, uint32_t size,
                 int is_write)
{
    access->address = address;
    access->size = size;
    if (is_write) {
        uint64_t value = load(data, size);

        memcpy(access->data, &value, sizeof value);
    } else {
        memset(data, 0xff, size);
    }
}

void note_access(struct kvm_run *run, struct pykvm_access *access)
{
    if (run->exit_reason == KVM_EXIT_IO && run->io.count == 1) {
        int is_write = run->io.direction == KVM_EXIT_IO_OUT;

        access->kind = is_write ? PYKVM_OUT : PYKVM_IN;
        note(access, run->io.port, (uint8_t *)run + run->io.data_offset, run->io.size, is_write);
    } else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.len <= sizeof run->mmio.data) {
        access->kind = run->mmio.is_write ? PYKVM_STORE : PYKVM_LOAD;
        note(access, run->mmio.phys_addr, run->mmio.data, run->mmio.len, run->mmio.is_write);
    }
}

void count_exit(struct pykvm_vcpu *v, const struct kvm_run *run)
{
    uint32_t index = run->exit_reason & 63;

    if ((run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT) ||
        (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write))
        index += 64;
    v->exits[index]++;
}

int64_t take_exit(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    if (!p->map || v->surface)
        return PYKVM_EXIT;
    if (p->ring && p->shared->coalesces)
        drain_ring(v);
    if (p->run->exit_reason == KVM_EXIT_IO)
        return take_io(v);
    if (p->run->exit_reason == KVM_EXIT_MMIO)
        return take_mmio(v);
    if (v->syscall && pykvm_work_around_syscall(v->syscall, p->run))
        return REENTER;
    if (v->native) {
        int done = pykvm_native_exit(v->native, p->fd, p->run);

        if (done < 0)
            v->error = -done;
        if (done)
            return done < 0 ? PYKVM_ERROR : REENTER;
    }
    return PYKVM_EXIT;
}
