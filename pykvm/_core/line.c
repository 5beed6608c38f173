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
    uint8_t driven[PYKVM_LINES]; /* the level that KVM was told */
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

/* Under the lock: an input is asserted while any of its lines is; KVM hears of a change. */
static int drive_input(struct pykvm_lines *lines, uint32_t irq)
{
    struct kvm_irq_level change = {.irq = irq, .level = !!lines->asserted[irq]};

    if (lines->driven[irq] == change.level)
        return 0;
    lines->driven[irq] = (uint8_t)change.level;
    lines->changes[irq]++;
    if (lines->vm < 0)
        return 0;
    return ioctl(lines->vm, KVM_IRQ_LINE, &change) < 0 ? -errno : 0;
}

/* Under the lock. */
static void set_level(struct pykvm_line *line, int level)
{
    if (line->level == level)
        return;
    line->level = level;
    line->lines->asserted[line->irq] += level ? 1 : -1;
}

int pykvm_line_set(struct pykvm_line *line, int level)
{
    struct pykvm_lines *lines = line->lines;
    int result;

    lock(&lines->lock);
    set_level(line, !!level);
    result = drive_input(lines, line->irq);
    unlock(&lines->lock);
    return result;
}

void pykvm_line_restore(struct pykvm_line *line, int level)
{
    struct pykvm_lines *lines = line->lines;

    lock(&lines->lock);
    set_level(line, !!level);
    unlock(&lines->lock);
}

int pykvm_lines_differ(struct pykvm_lines *lines)
{
    int differ = 0;

    lock(&lines->lock);
    for (uint32_t irq = 0; irq < PYKVM_LINES; irq++)
        differ |= lines->driven[irq] != !!lines->asserted[irq];
    unlock(&lines->lock);
    return differ;
}

int pykvm_lines_drive(struct pykvm_lines *lines)
{
    int result = 0;

    lock(&lines->lock);
    for (uint32_t irq = 0; irq < PYKVM_LINES && !result; irq++)
        result = drive_input(lines, irq);
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
