/*
 * The yardstick: the smallest C program that runs the same guest and does the same work.
 *
 *     cloop IMAGE
 *
 * IMAGE is a guest as pykvm prepared it: RAM, kvm_regs and kvm_sregs (layout: struct header).
 * Commands come on stdin, one a line; each is answered by one line on stdout:
 *
 *     run          enter the guest until it writes to the stop port   -> "<exits> <ns>"
 *     life N       N times: create, run to the first exit, close      -> "<N> <ns>"
 *     read N       N times: copy 1 MiB out of the upper half of RAM   -> "<N> <ns>"
 *     write N      N times: copy 1 MiB into the upper half of RAM     -> "<N> <ns>"
 *     kick         from a thread's signal to the return of KVM_RUN    -> "1 <ns>"
 *     talk         enter the guest until it says "end", reads answered -> what it said
 *
 * It stays alive between commands, so that the caller can take turns with it.  Exits and copies
 * are measured in CPU time of the thread, which what else runs on this host does not lengthen;
 * lives and kicks in wall time, since closing a VM waits for the kernel, and a kick for the guest.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define MIB (1u << 20)
#define MAX_CPUID 256
#define MAX_WRITES 65536
#define KICK SIGUSR1
#define DEBUG_CONSOLE 0xe9
#define COM1_IIR 0x3fa
#define COM1_LSR 0x3fd
#define PM_TIMER 0x608
#define PM_TIMER_HZ 3579545
#define HPET_COUNTER 0xfed000f0
#define HPET_HZ 100000000
#define BEFORE_KICK 1000000 /* ns: by then the guest runs */

struct header {
	char magic[8];
	uint64_t ram_size;
	uint64_t stop_port;
	uint64_t pages;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	/* then, `pages` times: uint64_t gpa, uint8_t content[PAGE] */
};

struct page {
	uint64_t gpa;
	uint8_t content[PAGE];
};

struct image {
	struct header header;
	struct page *pages;
};

struct vm {
	int kvm, vm, vcpu;
	size_t run_size;
	struct kvm_run *run;
	uint8_t *ram;
};

struct write {
	uint64_t address;
	uint64_t value;
	uint32_t size;
};

struct kick {
	pthread_t target;
	int64_t sent;
};

static struct {
	__u32 nent, padding;
	struct kvm_cpuid_entry2 entries[MAX_CPUID];
} cpuid = { .nent = MAX_CPUID };

static struct write writes[MAX_WRITES];

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void nothing(int signal)
{
	(void)signal;
}

static int must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static struct image read_image(const char *path)
{
	struct image image;
	FILE *file = fopen(path, "rb");

	if (!file || fread(&image.header, sizeof(image.header), 1, file) != 1)
		err(1, "%s", path);
	if (memcmp(image.header.magic, "pykvmimg", 8))
		errx(1, "%s: not a guest image", path);
	image.pages = calloc(image.header.pages, sizeof(struct page));
	if (!image.pages ||
	    fread(image.pages, sizeof(struct page), image.header.pages, file) != image.header.pages)
		errx(1, "%s: cut short", path);
	fclose(file);
	return image;
}

static void query_cpuid(void)
{
	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");

	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	close(kvm);
}

static struct vm open_vm(const struct image *image)
{
	const struct header *header = &image->header;
	struct vm vm;

	vm.kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	vm.vm = must(ioctl(vm.kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	vm.ram = mmap(NULL, header->ram_size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (vm.ram == MAP_FAILED)
		err(1, "guest RAM");
	for (uint64_t i = 0; i < header->pages; i++)
		memcpy(vm.ram + image->pages[i].gpa, image->pages[i].content, PAGE);

	struct kvm_userspace_memory_region region = {
		.memory_size = header->ram_size,
		.userspace_addr = (uintptr_t)vm.ram,
	};
	must(ioctl(vm.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	vm.vcpu = must(ioctl(vm.vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	vm.run_size = must(ioctl(vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	vm.run = mmap(NULL, vm.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, 0);
	if (vm.run == MAP_FAILED)
		err(1, "kvm_run");
	must(ioctl(vm.vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
	must(ioctl(vm.vcpu, KVM_SET_SREGS, &header->sregs), "KVM_SET_SREGS");
	must(ioctl(vm.vcpu, KVM_SET_REGS, &header->regs), "KVM_SET_REGS");
	return vm;
}

static void close_vm(struct vm *vm, const struct image *image)
{
	munmap(vm->run, vm->run_size);
	close(vm->vcpu);
	close(vm->vm);
	munmap(vm->ram, image->header.ram_size);
	close(vm->kvm);
}

static void enter(struct vm *vm)
{
	while (ioctl(vm->vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR && errno != EAGAIN)
			err(1, "KVM_RUN");
}

/* Collect writes until one goes to the stop port; return how many there were. */
static unsigned run_batch(struct vm *vm, uint64_t stop_port)
{
	struct kvm_run *run = vm->run;

	for (unsigned n = 0; n < MAX_WRITES; n++) {
		struct write *write = &writes[n];

		enter(vm);
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.port == stop_port)
				return n;
			write->address = run->io.port;
			write->size = run->io.size;
			memcpy(&write->value, (uint8_t *)run + run->io.data_offset, run->io.size);
			break;
		case KVM_EXIT_MMIO:
			write->address = run->mmio.phys_addr;
			write->size = run->mmio.len;
			memcpy(&write->value, run->mmio.data, run->mmio.len);
			break;
		default:
			errx(1, "exit %u, not expected of this guest", run->exit_reason);
		}
	}
	errx(1, "the guest does not stop");
}

/* How many ticks of `hz` CLOCK_MONOTONIC has made. */
static uint64_t ticks(uint64_t hz)
{
	return (unsigned __int128)now_ns(CLOCK_MONOTONIC) * hz / 1000000000;
}

/* What the devices of a PC answer to guests/hot.c. */
static uint64_t answer(int is_port, uint64_t address)
{
	if (!is_port)
		return address == HPET_COUNTER ? ticks(HPET_HZ) : UINT64_MAX;
	switch (address) {
	case PM_TIMER:
		return ticks(PM_TIMER_HZ);
	case COM1_IIR:
		return 0xc2;
	case COM1_LSR:
		return 0x60;
	}
	return UINT64_MAX;
}

/* Echo what comes on the debug console up to the line "end", and keep all other writes. */
static void talk(struct vm *vm)
{
	struct kvm_run *run = vm->run;
	char line[64];
	unsigned length = 0;

	for (unsigned n = 0;; n = (n + 1) % MAX_WRITES) {
		struct write *write = &writes[n];
		uint8_t *data;

		enter(vm);
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			data = (uint8_t *)run + run->io.data_offset;
			if (run->io.direction == KVM_EXIT_IO_IN) {
				uint64_t value = answer(1, run->io.port);

				memcpy(data, &value, run->io.size);
				break;
			}
			if (run->io.port == DEBUG_CONSOLE) {
				line[length++] = *data;
				if (*data != '\n' && length < sizeof(line))
					break;
				fwrite(line, 1, length, stdout);
				if (length == 4 && !memcmp(line, "end", 3))
					return;
				length = 0;
				break;
			}
			write->address = run->io.port;
			write->size = run->io.size;
			memcpy(&write->value, data, run->io.size);
			break;
		case KVM_EXIT_MMIO:
			if (run->mmio.is_write) {
				write->address = run->mmio.phys_addr;
				write->size = run->mmio.len;
				memcpy(&write->value, run->mmio.data, run->mmio.len);
			} else {
				uint64_t value = answer(0, run->mmio.phys_addr);

				memcpy(run->mmio.data, &value, run->mmio.len);
			}
			break;
		default:
			errx(1, "exit %u, not expected of this guest", run->exit_reason);
		}
	}
}

static void live_once(const struct image *image)
{
	struct vm vm = open_vm(image);

	enter(&vm);
	close_vm(&vm, image);
}

/* A signal that is let in nowhere but in KVM_RUN, and so cannot come too early to end that. */
static void prepare_kicks(struct vm *vm)
{
	struct sigaction ignore = { .sa_handler = nothing };
	struct {
		struct kvm_signal_mask head;
		uint64_t set;
	} mask = { .head.len = sizeof(mask.set) };
	sigset_t kick;

	sigemptyset(&kick);
	sigaddset(&kick, KICK);
	sigaction(KICK, &ignore, NULL);
	pthread_sigmask(SIG_BLOCK, &kick, NULL);
	must(ioctl(vm->vcpu, KVM_SET_SIGNAL_MASK, &mask), "KVM_SET_SIGNAL_MASK");
}

static void *kick_soon(void *kick)
{
	struct kick *mine = kick;
	struct timespec pause = { .tv_nsec = BEFORE_KICK };

	nanosleep(&pause, NULL);
	mine->sent = now_ns(CLOCK_MONOTONIC);
	pthread_kill(mine->target, KICK);
	return NULL;
}

/* From just before the signal is sent to KVM_RUN's return. */
static int64_t kick_once(struct vm *vm)
{
	struct kick kick = { .target = pthread_self() };
	struct timespec at_once = { 0 };
	sigset_t pending;
	pthread_t thread;
	int64_t back;

	prepare_kicks(vm);
	if (pthread_create(&thread, NULL, kick_soon, &kick))
		errx(1, "no thread");
	while (ioctl(vm->vcpu, KVM_RUN, 0) < 0 && errno == EAGAIN)
		;
	back = now_ns(CLOCK_MONOTONIC);
	if (vm->run->exit_reason != KVM_EXIT_INTR)
		errx(1, "exit %u, and not for the signal", vm->run->exit_reason);
	pthread_join(thread, NULL);
	sigemptyset(&pending);
	sigaddset(&pending, KICK);
	sigtimedwait(&pending, NULL, &at_once);
	return back - kick.sent;
}

/* Without this the compiler may drop all but the last of several equal copies. */
static void copy(void *to, const void *from)
{
	memcpy(to, from, MIB);
	__asm__ volatile("" : : "r"(to) : "memory");
}

int main(int argc, char **argv)
{
	char command[16], line[64];
	uint8_t *buffer = malloc(MIB);

	if (argc != 2 || !buffer)
		errx(2, "usage: cloop IMAGE");
	struct image image = read_image(argv[1]);
	query_cpuid();
	struct vm vm = open_vm(&image);
	/* From one MiB to the next, so that how one of them happens to lie in the caches matters less. */
	unsigned stretch = image.header.ram_size / 2 / MIB;
	uint8_t *upper = vm.ram + image.header.ram_size / 2;
	memset(upper, 1, stretch * MIB);
	memset(buffer, 1, MIB);

	while (fgets(line, sizeof(line), stdin)) {
		unsigned count = 1;

		sscanf(line, "%15s %u", command, &count);
		clockid_t clock =
			strcmp(command, "life") ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
		int64_t start = now_ns(clock), spent = -1;
		if (!strcmp(command, "run"))
			count = run_batch(&vm, image.header.stop_port);
		else if (!strcmp(command, "life"))
			for (unsigned i = 0; i < count; i++)
				live_once(&image);
		else if (!strcmp(command, "read"))
			for (unsigned i = 0; i < count; i++)
				copy(buffer, upper + i % stretch * MIB);
		else if (!strcmp(command, "write"))
			for (unsigned i = 0; i < count; i++)
				copy(upper + i % stretch * MIB, buffer);
		else if (!strcmp(command, "kick"))
			spent = kick_once(&vm);
		else if (!strcmp(command, "talk"))
			talk(&vm);
		else
			errx(2, "unknown command: %s", line);
		if (spent < 0)
			spent = now_ns(clock) - start;
		if (strcmp(command, "talk"))
			printf("%u %lld\n", count, (long long)spent);
		fflush(stdout);
	}
	return 0;
}
