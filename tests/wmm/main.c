/* SPDX-License-Identifier: MIT
 * main.c - owns the command that run.sh runs:
 *
 *	wmm litmus [PROGRAMS]	check the checker
 *	wmm all | quick | NAME	explore scenarios
 *	wmm orders		weaken the library's memory orders one by one: each must be caught
 *	wmm caught		status 1, and by what, if a scenario fails: for source mutants
 *
 * The last line is "N passed, N failed".
 */
#include "litmus.h"
#include "scenarios.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct wmm_options options = { .name = name_world };
static bool is_quick;

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct wmm_result explore(const struct wmm_scenario *scenario)
{
	options.world = scenario->world;
	options.world_bytes = scenario->world_bytes;
	return wmm_explore(scenario, &options);
}

/* ---- scenarios ------------------------------------------------------------------------------- */

static bool run(const struct wmm_scenario *scenario)
{
	double start = seconds();
	struct wmm_result result;

	memset(&tally, 0, sizeof(tally));
	options.is_verbose = true;
	result = explore(scenario);
	printf("  %-21s %9llu %8llu %4u %7.2f %7llu %6llu %6llu %6llu %6llu  %s\n", scenario->name,
	       (unsigned long long)result.executions, (unsigned long long)result.blocked,
	       result.longest, seconds() - start, (unsigned long long)tally.mailed,
	       (unsigned long long)tally.late, (unsigned long long)tally.window,
	       (unsigned long long)tally.released, (unsigned long long)tally.refused,
	       result.bug == NULL ? "ok" : "FAILED");
	fflush(stdout);
	return result.bug == NULL;
}

static void run_scenarios(const char *name, unsigned *passed, unsigned *failed)
{
	printf("All executions of the scenarios; how often mail is left, a double free is found\n"
	       "late, or is undecidable, a page is released, a release or move is refused\n");
	printf("  %-21s %9s %8s %4s %7s %7s %6s %6s %6s %6s\n", "", "execs", "given up", "ops",
	       "seconds", "mail", "late", "window", "freed", "refus");
	for (unsigned i = 0; i < scenario_count; i++)
		if (name == NULL ? !is_quick || scenarios[i].is_quick
				 : strcmp(name, scenarios[i].name) == 0)
			*(run(&scenarios[i]) ? passed : failed) += 1;
}

/* ---- mutants --------------------------------------------------------------------------------- */

/* A mutant may loop without an atomic access: that is a verdict, too. */
static void on_tick(int signal)
{
	static uint64_t before;

	(void)signal;
	if (wmm_progress() == before && before != 0) {
		static const char text[] = "does not end";

		_exit(write(1, text, sizeof(text) - 1) < 0 ? 3 : 1);
	}
	before = wmm_progress();
}

/* Time of the process, not of the clock: the machine may be busy. */
static void watch(void)
{
	const struct itimerval every = { { 2, 0 }, { 2, 0 } };

	signal(SIGVTALRM, on_tick);
	setitimer(ITIMER_VIRTUAL, &every, NULL);
}

/* Return: true, and says by what, if a scenario fails. */
static bool is_caught(void)
{
	watch();
	for (unsigned i = 0; i < scenario_count; i++) {
		struct wmm_result result;

		result = explore(&scenarios[i]);
		if (result.bug == NULL)
			continue;
		printf("%s: %s", scenarios[i].name, result.bug);
		fflush(stdout);
		return true;
	}
	return false;
}

/* One access with a weaker order than written. */
struct mutant {
	const struct wmm_site *site;
	enum wmm_order to;
	pid_t child;
	int from_child;
};

#define MUTANTS 128u
#define AT_ONCE 2u

static const char *reason_for(const struct mutant *mutant)
{
	for (unsigned i = 0; not_needed[i].function != NULL; i++)
		if (strcmp(not_needed[i].function, mutant->site->function) == 0 &&
		    strcmp(not_needed[i].operation, mutant->site->operation) == 0 &&
		    not_needed[i].to == mutant->to)
			return not_needed[i].reason;
	return NULL;
}

/* The next weaker orders of a site. Return: how many. */
static unsigned weaker_orders(const struct wmm_site *site, enum wmm_order to[3])
{
	bool is_load = strncmp(site->operation, "LOAD", 4) == 0;
	bool is_store = strncmp(site->operation, "STORE", 5) == 0;

	switch (site->order) {
	case WMM_SEQ:
		to[0] = is_load ? WMM_ACQUIRE : is_store ? WMM_RELEASE : WMM_ACQ_REL;
		return 1;
	case WMM_ACQ_REL:
		to[0] = WMM_ACQUIRE;
		to[1] = WMM_RELEASE;
		to[2] = WMM_FAILURE_RELAXED;
		return 3;
	case WMM_ACQUIRE:
	case WMM_RELEASE:
		to[0] = WMM_RELAXED;
		return 1;
	default:
		return 0;
	}
}

static bool is_same(const struct wmm_site *a, const struct wmm_site *b)
{
	return strcmp(a->function, b->function) == 0 && strcmp(a->operation, b->operation) == 0 &&
	       strcmp(a->place, b->place) == 0;
}

static bool is_weakened(const struct wmm_site *site)
{
	const char *name = strrchr(site->file, '/');

	name = name != NULL ? name + 1 : site->file;
	for (const struct weakened *w = weakened; w->file != NULL; w++)
		if (strncmp(name, w->file, strlen(w->file)) == 0 &&
		    (w->function == NULL || strcmp(site->function, w->function) == 0) &&
		    (w->operation == NULL || strcmp(site->operation, w->operation) == 0))
			return true;
	return false;
}

/* All of them, of the library's accesses that the scenarios reached. */
static unsigned list_mutants(struct mutant mutant[MUTANTS])
{
	unsigned n = 0;

	for (const struct wmm_site *site = wmm_sites(); site != NULL; site = site->next) {
		enum wmm_order to[3];
		unsigned orders = weaker_orders(site, to);
		bool is_new = is_weakened(site);

		for (unsigned i = 0; i < n && is_new; i++)
			is_new = !is_same(mutant[i].site, site);
		for (unsigned i = 0; i < orders && is_new && n < MUTANTS; i++)
			mutant[n++] = (struct mutant){ site, to[i], 0, 0 };
	}
	return n;
}

/* In a process of its own, which may crash or hang. */
static void start(struct mutant *mutant)
{
	int fd[2];

	fflush(stdout);
	if (pipe(fd) != 0 || (mutant->child = fork()) < 0) {
		perror("wmm");
		exit(1);
	}
	if (mutant->child == 0) {
		dup2(fd[1], 1);
		wmm_weaken(mutant->site->function, mutant->site->operation, mutant->site->place,
			   mutant->to);
		_exit(is_caught() ? 1 : 0);
	}
	close(fd[1]);
	mutant->from_child = fd[0];
}

/* Return: true: as it should be. */
static bool finish(const struct mutant *mutant)
{
	const char *reason = reason_for(mutant);
	char text[128] = "";
	ssize_t got = read(mutant->from_child, text, sizeof(text) - 1);
	int status = 0;
	bool caught;

	close(mutant->from_child);
	waitpid(mutant->child, &status, 0);
	caught = status != 0;
	if (got <= 0)
		snprintf(text, sizeof(text), "%s", caught ? "crashes" : "");
	printf("  %-23s %s(%s) -> %s\n      %s%s\n", mutant->site->function,
	       mutant->site->operation, mutant->site->place, wmm_order_name(mutant->to),
	       caught ? (reason != NULL ? "CAUGHT, but called not needed: " : "")
		      : (reason != NULL ? "not needed: " : "NOT CAUGHT"),
	       caught		? text
	       : reason != NULL ? reason
				: "");
	return caught == (reason == NULL);
}

static void try_orders(unsigned *passed, unsigned *failed)
{
	struct mutant mutant[MUTANTS];
	unsigned n, caught = 0, needed = 0, started = 0;

	for (unsigned i = 0; i < scenario_count; i++) {
		if (explore(&scenarios[i]).bug != NULL) {
			printf("%s fails without a mutant\n", scenarios[i].name);
			*failed += 1;
			return;
		}
	}
	n = list_mutants(mutant);
	printf("Orders of the library, weakened one at a time, and what catches it\n");
	for (unsigned i = 0; i < n; i++) {
		bool is_right;

		for (; started < n && started < i + AT_ONCE; started++)
			start(&mutant[started]);
		is_right = finish(&mutant[i]);
		*(is_right ? passed : failed) += 1;
		needed += reason_for(&mutant[i]) == NULL;
		caught += is_right && reason_for(&mutant[i]) == NULL;
	}
	printf("%u of %u caught, %u not needed\n", caught, needed, n - needed);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "all";
	unsigned passed = 0, failed = 0;

	is_quick = strcmp(argv[argc - 1], "quick") == 0;
	if (strcmp(command, "caught") == 0) {
		if (is_caught())
			return 1;
		return 0;
	}
	if (strcmp(command, "litmus") == 0)
		litmus_run(argc > 2 ? (unsigned)atoi(argv[2]) : 1000, &passed, &failed);
	else if (strcmp(command, "orders") == 0)
		try_orders(&passed, &failed);
	else if (strcmp(command, "all") == 0 || is_quick)
		run_scenarios(NULL, &passed, &failed);
	else
		run_scenarios(command, &passed, &failed);
	printf("%u passed, %u failed\n", passed, failed);
	return failed != 0 || passed == 0;
}
