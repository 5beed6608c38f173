/*
 * Run one program and say what it took: "<wall ns> <CPU ns> <peak RSS KiB> <exit status>".
 *
 * Linux carries the peak RSS of the process that calls exec over into the new program, so a peak
 * that a large Python process would read from wait4() is its own.  This one is small.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t ns_of(struct timeval t)
{
	return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL;
}

static void become(char **argv)
{
	int null = open("/dev/null", O_RDWR);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	execvp(argv[0], argv);
	_exit(127);
}

int main(int argc, char **argv)
{
	struct rusage usage;
	int64_t start;
	pid_t pid;
	int status;

	if (argc < 2) {
		fprintf(stderr, "usage: spawn program [argument...]\n");
		return 2;
	}
	start = now_ns();
	pid = fork();
	if (pid == 0)
		become(argv + 1);
	if (pid < 0 || wait4(pid, &status, 0, &usage) != pid) {
		perror("spawn");
		return 1;
	}
	printf("%lld %lld %ld %d\n", (long long)(now_ns() - start),
	       (long long)(ns_of(usage.ru_utime) + ns_of(usage.ru_stime)), usage.ru_maxrss,
	       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	return 0;
}
