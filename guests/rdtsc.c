/* The time stamp counter, read twice.  Exit code 0: it went forward. */

#include "lib/cpu.h"
#include "lib/print.h"

int main(void)
{
    uint64_t first = rdtsc();
    uint64_t second = rdtsc();
    print("first  %lu\nsecond %lu\n", first, second);
    print("%s by %ld\n", second > first ? "forward" : "not forward", (long)(second - first));
    return second > first ? 0 : 1;
}
