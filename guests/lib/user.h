/* Ring 3 (long mode).  A function and its data are ring 3's when they carry these marks: they are
 * linked into a 2 MiB page of their own, and only that page is opened to ring 3.  String literals
 * and the rest of the guest are not there. */
#pragma once

#include <stdint.h>

#include "lib/descriptors.h"

#define USER_TEXT __attribute__((section(".user.text"), noinline))
#define USER_DATA __attribute__((section(".user.data")))

extern char user_stack_top[];

void load_user(void);               /* descriptors, exceptions, and the user page: call it first */
void allow_user_page(uint64_t address); /* opens the page that holds an address */

/* Runs function(first, second) in ring 3 with interrupts off and returns what it returned. */
uint64_t call_user(uint64_t (*function)(uint64_t, uint64_t), uint64_t first, uint64_t second);
