/* Floating point, signals and two processes at once: does each keep its registers?
 *
 * Two processes load XMM0 to XMM15 and the x87 stack with numbers of their own and wait in a loop
 * that touches none of them, while a timer's signals come in.  The handler does floating point of
 * its own, in the same registers.  Then the numbers must be where they were, and what the handler
 * saw of them in the signal's frame must be right too.  In between, sums are computed, which must
 * not depend on how often that was interrupted.
 *
 * Exit code 0; otherwise 1, after a line that says what went wrong. */

#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define SIGNALS 10
#define INTERVAL_US 20000
#define TERMS 5000
#define REGISTERS 16

typedef uint64_t xmm_register[2];

static xmm_register expected[REGISTERS];
static volatile sig_atomic_t holding, seen, wrong_frames;
static volatile double handler_sum;

/* The alternating harmonic series, in SSE and in x87: both come to ln 2. */
static double sse_sum(void)
{
    double sum = 0;
    for (int n = TERMS; n > 0; n--)
        sum += (n & 1 ? 1.0 : -1.0) / n;
    return sum;
}

static long double x87_sum(void)
{
    long double sum = 0;
    for (int n = TERMS; n > 0; n--)
        sum += (n & 1 ? 1.0L : -1.0L) / n;
    return sum;
}

static void on_alarm(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    if (!holding)
        return;
    const struct _libc_fpstate *frame = ((ucontext_t *)context)->uc_mcontext.fpregs;
    if (memcmp(frame->_xmm, expected, sizeof expected) != 0)
        wrong_frames = wrong_frames + 1;
    /* What does not keep its registers apart loses them here. */
    for (int i = 1; i < 50; i++)
        handler_sum = handler_sum + sqrt(i) + (double)sqrtl(i);
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm7, %%xmm7; pcmpeqd %%xmm15, %%xmm15"
                     ::: "xmm0", "xmm7", "xmm15");
    seen = seen + 1;
}

/* Keep numbers in the registers until SIGNALS more signals have come, and look at them again. */
static int registers_are_kept(long double on_stack)
{
    xmm_register found[REGISTERS];
    long double from_stack = 0;

    seen = 0;
    __asm__ volatile(
        "fldt %[on_stack]\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
        "movdqu \\n*16(%[expected]), %%xmm\\n\n"
        ".endr\n"
        "movl $1, %[holding]\n"
        "1: pause\n"
        "cmpl %[signals], %[seen]\n"
        "jl 1b\n"
        "movl $0, %[holding]\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
        "movdqu %%xmm\\n, \\n*16(%[found])\n"
        ".endr\n"
        "fstpt %[from_stack]\n"
        : [from_stack] "=m"(from_stack), [holding] "+m"(holding), [seen] "+m"(seen)
        : [on_stack] "m"(on_stack), [expected] "r"(expected), [found] "r"(found),
          [signals] "i"(SIGNALS)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
          "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st", "st(1)", "st(2)",
          "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
    return from_stack == on_stack && memcmp(found, expected, sizeof found) == 0;
}

static const char *failure(unsigned process)
{
    const struct itimerval timer = {{0, INTERVAL_US}, {0, INTERVAL_US}}, off = {{0, 0}, {0, 0}};
    const struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO};

    for (unsigned i = 0; i < REGISTERS; i++) {
        expected[i][0] = 0x0101010101010101 * (16 * (process + 1) + i);
        expected[i][1] = ~expected[i][0];
    }
    const double sse = sse_sum();
    const long double x87 = x87_sum();
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    if (!registers_are_kept(x87 + process))
        return "a register changed while signals came";
    const int sums_hold = sse_sum() == sse && x87_sum() == x87;
    setitimer(ITIMER_REAL, &off, NULL);
    if (wrong_frames)
        return "a signal's frame has other registers";
    if (!sums_hold)
        return "a sum is another one while signals come";
    if (fabs(sse - M_LN2) > 1.0 / TERMS || fabsl(x87 - M_LN2) > 1.0L / TERMS)
        return "the sums are not ln 2";
    return NULL;
}

int main(void)
{
    const pid_t child = fork();
    const char *what = child < 0 ? "no second process" : failure(child == 0);
    int status = 0;

    if (what)
        printf("fpsig: %s\n", what);
    if (child == 0)
        return what != NULL;
    if (child > 0 && (waitpid(child, &status, 0) != child || status != 0))
        return 1;
    if (!what)
        printf("fpsig: 2 processes, %d signals each: registers and sums are kept\n", SIGNALS);
    return what != NULL;
}
