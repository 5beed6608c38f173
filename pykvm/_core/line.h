/*
 * Interrupt lines of KVM's own interrupt controllers, for Python and for registers that drive one
 * (published.h).  build.py hands this file to cffi, too.
 */
#ifndef PYKVM_LINE_H
#define PYKVM_LINE_H
#include <stdint.h>

enum { PYKVM_LINES = 24 };

/* The inputs of a VM's interrupt controllers: one is asserted while any of its lines is. */
struct pykvm_lines;
/* One of the wires to an input.  It starts low. */
struct pykvm_line;

/* `vm` is the file descriptor, for as long as lines are set; -1 for inputs that lead nowhere. */
struct pykvm_lines *pykvm_lines_new(int vm);
void pykvm_lines_free(struct pykvm_lines *lines);

/* NULL without memory, or if there is no such input. */
struct pykvm_line *pykvm_line_new(struct pykvm_lines *lines, uint32_t irq);
/* Gives up the caller's hold: tables have their own.  The level stays as it is. */
void pykvm_line_free(struct pykvm_line *line);

/* From any thread.  Returns 0, or a negative errno of KVM_IRQ_LINE. */
int pykvm_line_set(struct pykvm_line *line, int level);
/* Give it the level that it had: the input is told by pykvm_lines_drive() only. */
void pykvm_line_restore(struct pykvm_line *line, int level);
/* Whether KVM was not told of the level of some input. */
int pykvm_lines_differ(struct pykvm_lines *lines);
/* Drive the inputs whose level KVM was not told.  Returns 0 or a negative errno. */
int pykvm_lines_drive(struct pykvm_lines *lines);
/* How often the level of the line's input has changed. */
uint64_t pykvm_line_changes(const struct pykvm_line *line);
#endif
