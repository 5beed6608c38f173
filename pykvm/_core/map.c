/* Whose a port or an address is: the bus as the loop wants it. */
#include "vcpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int64_t maps;

struct pykvm_map *pykvm_map_new(struct pykvm_shared *shared)
{
    struct pykvm_map *map = calloc(1, sizeof *map);

    if (map) {
        map->holders = 1;
        map->shared = shared;
        pykvm_shared_hold(shared);
        __atomic_add_fetch(&maps, 1, __ATOMIC_RELAXED);
    }
    return map;
}

void map_hold(struct pykvm_map *map)
{
    if (map)
        __atomic_add_fetch(&map->holders, 1, __ATOMIC_RELAXED);
}

void pykvm_map_free(struct pykvm_map *map)
{
    if (!map || __atomic_sub_fetch(&map->holders, 1, __ATOMIC_ACQ_REL))
        return;
    for (size_t i = 0; i < map->port_ranges; i++)
        pykvm_table_free(map->ports[i].table);
    for (size_t i = 0; i < map->mmio_ranges; i++)
        pykvm_table_free(map->mmio[i].table);
    free(map->ports);
    free(map->mmio);
    pykvm_shared_free(map->shared);
    free(map);
    __atomic_sub_fetch(&maps, 1, __ATOMIC_RELAXED);
}

int64_t pykvm_maps(void)
{
    return __atomic_load_n(&maps, __ATOMIC_RELAXED);
}

int pykvm_map_add(struct pykvm_map *map, int space, uint64_t first, uint64_t last, uint64_t slot,
                  int posted, struct pykvm_table *table, uint64_t bias)
{
    struct range range = {.first = first, .last = last, .slot = slot, .posted = !!posted,
                          .table = table, .bias = bias};
    size_t *count = space == PYKVM_PIO ? &map->port_ranges : &map->mmio_ranges;
    struct range **ranges = space == PYKVM_PIO ? &map->ports : &map->mmio;
    struct range *grown;
    size_t at;

    if (last < first || slot >> 56 || (space == PYKVM_PIO && (last > 0xffff || *count >= 0xfffe)))
        return -EINVAL;
    grown = realloc(*ranges, (*count + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    *ranges = grown;
    at = (*count)++;
    if (space == PYKVM_PIO) {
        for (uint64_t port = first; port <= last; port++)
            map->port[port] = (uint16_t)(at + 1);
    } else {
        for (; at > 0 && grown[at - 1].first > first; at--)
            grown[at] = grown[at - 1];
    }
    grown[at] = range;
    if (table)
        pykvm_table_hold(table);
    return 0;
}

int map_claimed(const struct pykvm_map *map, int space, uint64_t address, uint64_t size)
{
    if (size > UINT64_MAX - address || (space == PYKVM_PIO && address + size > 0x10000))
        return 1; /* it goes on at 0, which is for the bus to find out */
    if (space == PYKVM_PIO) {
        for (uint64_t port = address; port < address + size; port++)
            if (map->port[port])
                return 1;
        return 0;
    }
    for (size_t low = 0, high = map->mmio_ranges; low < high;) {
        size_t middle = (low + high) / 2;

        if (address + (size - 1) < map->mmio[middle].first)
            high = middle;
        else if (address > map->mmio[middle].last)
            low = middle + 1;
        else
            return 1;
    }
    return 0;
}

static const struct range *search_ports(const struct pykvm_map *map, uint32_t port, uint32_t size)
{
    const struct range *range;

    if (!map->port[port])
        return NULL;
    range = &map->ports[map->port[port] - 1];
    return port + size - 1 <= range->last ? range : NULL;
}

static const struct range *search_mmio(const struct pykvm_map *map, uint64_t address, uint32_t size)
{
    size_t low = 0, high = map->mmio_ranges;

    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct range *range = &map->mmio[middle];

        if (address < range->first)
            high = middle;
        else if (address > range->last)
            low = middle + 1;
        else
            return range->last - address >= size - 1 ? range : NULL;
    }
    return NULL;
}

const struct range *map_find(struct pykvm_private *p, int space, uint64_t address, uint32_t size)
{
    struct range *recent = &p->recent[space];
    const struct range *found;

    if (address >= recent->first && address <= recent->last && recent->last - address >= size - 1)
        return recent;
    found = space == PYKVM_PIO ? search_ports(p->map, (uint32_t)address, size)
                               : search_mmio(p->map, address, size);
    if (found)
        *recent = *found;
    return found;
}

void forget_recent(struct pykvm_private *p)
{
    static const struct range nowhere = {.first = 1, .last = 0};

    p->recent[PYKVM_PIO] = nowhere;
    p->recent[PYKVM_MMIO] = nowhere;
    memset(p->hole, 0, sizeof p->hole);
}

/*
 * Another thread may change the bus while this one is in the guest.  The old map may be freed here:
 * nothing of it is in use but what was copied from it.
 */
void take_map(struct pykvm_private *p)
{
    struct pykvm_map *map;

    if (!__atomic_load_n(&p->new_map, __ATOMIC_RELAXED))
        return;
    map = __atomic_exchange_n(&p->new_map, NULL, __ATOMIC_ACQUIRE);
    if (!map)
        return;
    pykvm_map_free(p->map);
    p->map = map;
    p->shared = map->shared;
    forget_recent(p);
}

void pykvm_set_map(struct pykvm_vcpu *v, struct pykvm_map *map)
{
    map_hold(map);
    pykvm_map_free(__atomic_exchange_n(&v->private_->new_map, map, __ATOMIC_ACQ_REL));
}
