/* Interrupt lines of KVM's own interrupt controllers (line.h). */
#define _GNU_SOURCE
#include "line.h"

#include "shared.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>

struct pykvm_lines {
    int vm;
    uint32_t lock; /* held for the ioctl, too: the kernel sees levels in the order of the changes */
    uint64_t holders;
    uint32_t asserted[PYKVM_LINES]; /* how many lines assert the input */
    uint64_t changes[PYKVM_LINES];
};

struct pykvm_line {
    struct pykvm_lines *lines;
    uint64_t holders;
    uint32_t irq;
    int level;
};

struct pykvm_lines *pykvm_lines_new(int vm)
{
    struct pykvm_lines *lines = calloc(1, sizeof *lines);

    if (lines) {
        lines->vm = vm;
        lines->holders = 1;
    }
    return lines;
}

void pykvm_lines_free(struct pykvm_lines *lines)
{
    if (lines && !__atomic_sub_fetch(&lines->holders, 1, __ATOMIC_ACQ_REL))
        free(lines);
}

struct pykvm_line *pykvm_line_new(struct pykvm_lines *lines, uint32_t irq)
{
    struct pykvm_line *line = irq < PYKVM_LINES ? calloc(1, sizeof *line) : NULL;

    if (line) {
        __atomic_add_fetch(&lines->holders, 1, __ATOMIC_RELAXED);
        line->lines = lines;
        line->holders = 1;
        line->irq = irq;
    }
    return line;
}

void pykvm_line_hold(struct pykvm_line *line)
{
    __atomic_add_fetch(&line->holders, 1, __ATOMIC_RELAXED);
}

void pykvm_line_free(struct pykvm_line *line)
{
    if (!line || __atomic_sub_fetch(&line->holders, 1, __ATOMIC_ACQ_REL))
        return;
    pykvm_lines_free(line->lines);
    free(line);
}

/* Under the lock: the first line to assert an input, or the last one, changes it. */
static int step(struct pykvm_lines *lines, uint32_t irq, int level)
{
    struct kvm_irq_level change = {.irq = irq, .level = (uint32_t)level};
    uint32_t others = level ? lines->asserted[irq]++ : --lines->asserted[irq];

    if (others)
        return 0;
    lines->changes[irq]++;
    if (lines->vm < 0)
        return 0;
    return ioctl(lines->vm, KVM_IRQ_LINE, &change) < 0 ? -errno : 0;
}

int pykvm_line_set(struct pykvm_line *line, int level)
{
    struct pykvm_lines *lines = line->lines;
    int result = 0;

    lock(&lines->lock);
    if (line->level != !!level) {
        line->level = !!level;
        result = step(lines, line->irq, !!level);
    }
    unlock(&lines->lock);
    return result;
}

uint64_t pykvm_line_changes(const struct pykvm_line *line)
{
    struct pykvm_lines *lines = line->lines;
    uint64_t changes;

    lock(&lines->lock);
    changes = lines->changes[line->irq];
    unlock(&lines->lock);
    return changes;
}
