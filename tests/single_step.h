/* SPDX-License-Identifier: MIT
 * single_step.h - owns the interrupt that comes at every instruction: a piece of code is run in
 * single steps (x86 trap flag), and at each step a forked copy of the program is interrupted there,
 * runs on, and is judged.
 * Rank: test helper.  Runs: Linux on x86, one thread. Elsewhere single_step_is_available() says no.
 *
 *     step:     1     2     3     4 ...            the parent only steps
 *               |     |     |     |
 *             child child child child              interrupt(), rest of op(), verify(), exit
 *
 * One interrupt for each run, for every place: n runs for n instructions, and the cost is that of n
 * forks. Or (window) one more for each, at every place shortly behind it: n * window runs.
 */
#ifndef SINGLE_STEP_H
#define SINGLE_STEP_H

#ifndef _GNU_SOURCE
#error "single_step.h: define _GNU_SOURCE first"
#endif

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__linux__) && (defined(__x86_64__) || defined(__i386__)) &&                            \
	!defined(__SANITIZE_THREAD__)
#define SINGLE_STEP_FLAG 0x100
#define SINGLE_STEP_REGISTER REG_EFL
#endif

/* Seconds after which an interrupted run counts as hanging. */
#define SINGLE_STEP_HANGS 5
/* After so many failures there is nothing new to learn. */
#define SINGLE_STEP_FAILURES 3

struct single_step {
	const char *name;
	void (*op)(void); /* the code that is interrupted */
	bool (*may_interrupt)(void); /* asked at each step; NULL: always */
	void (*interrupt)(size_t step); /* what the interrupt does */
	bool (*verify)(void); /* after op, in every run: all is well. MAY destroy everything */
	size_t dense; /* so many interrupts at each step; then ... */
	size_t stride; /* ... only at every stride-th; 0: at each */
	/* a second interrupt comes so many steps behind the first at most; 0: none */
	size_t window;

	/* results: instructions of op, places at which it was interrupted (the first time) */
	size_t steps, interrupts;
	/* interrupted runs that went wrong; the step of the first */
	size_t failures, first_failure;
};

static struct single_step *single_step_now;
static volatile sig_atomic_t single_step_inside; /* between begin and end of op */
static volatile sig_atomic_t single_step_child; /* interrupts that came in this run */
static size_t single_step_last; /* the step of the last one */

#ifdef SINGLE_STEP_FLAG
static void single_step_trap(int number, siginfo_t *info, void *context)
{
	struct single_step *step = single_step_now;
	static const int deadly[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT };
	ucontext_t *user = context;
	int status = 1;
	pid_t pid;

	(void)number;
	(void)info;
	if (single_step_child && (!single_step_inside || single_step_child == 2 ||
				  step->steps - single_step_last == step->window)) {
		user->uc_mcontext.gregs[SINGLE_STEP_REGISTER] &= ~SINGLE_STEP_FLAG;
		return;
	}
	if (!single_step_inside)
		return;
	step->steps++;
	if (step->failures == SINGLE_STEP_FAILURES ||
	    (!single_step_child && step->interrupts >= step->dense && step->stride > 1 &&
	     step->steps % step->stride != 0) ||
	    (step->may_interrupt != NULL && !step->may_interrupt()))
		return;
	step->interrupts++;
	pid = fork();
	if (pid == 0) {
		single_step_child++;
		single_step_last = step->steps;
		step->failures = 0;
		for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
			/* not cmocka's, which would go on with the next test */
			signal(deadly[i], SIG_DFL);
		alarm(SINGLE_STEP_HANGS);
		step->interrupt(step->steps);
		return;
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
		if (pid > 0 && !WIFEXITED(status))
			fprintf(stderr, "%s: interrupted at step %zu: signal %d\n", step->name,
				step->steps, WTERMSIG(status));
		if (step->failures++ == 0)
			step->first_failure = step->steps;
	}
}

static void single_step_switch(int number, siginfo_t *info, void *context)
{
	ucontext_t *user = context;

	(void)number;
	(void)info;
	user->uc_mcontext.gregs[SINGLE_STEP_REGISTER] ^= SINGLE_STEP_FLAG;
}

static inline bool single_step_is_available(void)
{
	return true;
}

/* See the two below. */
static inline bool single_step_start(struct single_step *step, bool judge_plain_run)
{
	struct sigaction trap, toggle, old_trap, old_toggle;
	bool good;

	memset(&trap, 0, sizeof(trap));
	trap.sa_sigaction = single_step_trap;
	trap.sa_flags = SA_SIGINFO | SA_NODEFER;
	toggle = trap;
	toggle.sa_sigaction = single_step_switch;
	step->steps = step->interrupts = step->failures = step->first_failure = 0;
	single_step_now = step;
	fflush(NULL); /* or children would write what is buffered again */
	sigaction(SIGTRAP, &trap, &old_trap);
	sigaction(SIGUSR1, &toggle, &old_toggle);
	raise(SIGUSR1);
	single_step_inside = 1;
	step->op();
	single_step_inside = 0;
	if (!single_step_child)
		raise(SIGUSR1);
	good = (!single_step_child && !judge_plain_run) || step->verify();
	if (single_step_child) {
		if (!good)
			fprintf(stderr, "%s: interrupted at step %zu: wrong\n", step->name,
				step->steps);
		fflush(stderr);
		_exit(good && step->failures == 0 ? 0 : 1);
	}
	sigaction(SIGTRAP, &old_trap, NULL);
	sigaction(SIGUSR1, &old_toggle, NULL);
	return good && step->failures == 0;
}
#else
static inline bool single_step_is_available(void)
{
	return false;
}

static inline bool single_step_start(struct single_step *step, bool judge_plain_run)
{
	(void)step;
	(void)judge_plain_run;
	(void)single_step_now;
	(void)single_step_inside;
	(void)single_step_child;
	return false;
}
#endif

/*
 * Run op once in single steps. Return: true if no run went wrong, the one without an interrupt
 * included.
 */
static inline bool single_step_run(struct single_step *step)
{
	return single_step_start(step, true);
}

/* The same where only an interrupted run can be judged. */
static inline bool single_step_run_interrupted(struct single_step *step)
{
	return single_step_start(step, false);
}

#endif
