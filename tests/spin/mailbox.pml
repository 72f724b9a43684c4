/* SPDX-License-Identifier: MIT
 * mailbox.pml - owns the Spin model of frees from other CPUs: remote bits, arming, the mailbox,
 * pages that change hands. Sequentially consistent: what weak memory adds is checked by tests/wmm,
 * on the source itself. Spin adds longer histories: take, free, drain and move in any order.
 *
 * CPU 0 owns zone 0; zone 1 is limbo, operated under the lock by CPU 0 (moves) and CPU 1 (tends
 * it). Two CPUs free. Each access to shared memory is one step, as in the source; atomic { } is one
 * atomic operation, with what the model only counts.
 *
 * Promises: I1 a slot is free at most once; conservation: bits set = bits harvested + bits pending,
 * at every step; when all is quiet, each pending bit is in a page that its owner will look at: in
 * its mailbox, or not full; a page is in at most one mailbox, its owner's, and only if QUEUED.
 *
 * Seeded faults, each of which Spin must find: NO_RECHECK, OVER_ARM, STALE_OWNER, PLAIN_DISARM,
 * CLEAR_ALL, PLAIN_QUEUE (see below); run.sh runs them all. OWNER_STEPS and FREES bound the run.
 */
#define PAGES 2
#define ALL 3 /* two slots; page 1 has only one: its other bit is never set */
#define NONE 255

#define IDLE 0
#define ARMED 1
#define QUEUED 2

byte remote[PAGES], freed[PAGES]; /* bits: free */
byte mail[PAGES] = ARMED;
byte zone[PAGES];		  /* owner */
byte link[PAGES] = NONE;	  /* in the mailbox */
byte box[2] = NONE;		  /* head of each zone's mailbox */
bool is_full[PAGES] = true;
byte live[PAGES];		  /* objects in clients' hands */
bool lock = false;
byte sets, harvested;		  /* counted with each step */
byte ended;

#define COUNT(w) (((w) & 1) + (((w) >> 1) & 1))
#define PENDING (COUNT(remote[0]) + COUNT(remote[1]))

inline harvest(p)
{
	word = remote[p];
	if
	:: word != 0 ->
		assert((word & freed[p]) == 0); /* I1 */
		freed[p] = freed[p] | word;
#ifdef CLEAR_ALL /* clears bits that it has not read */
		atomic { remote[p] = 0; harvested = harvested + COUNT(word) }
#else
		atomic { remote[p] = remote[p] & (ALL - word); harvested = harvested + COUNT(word) }
#endif
		assert(sets == harvested + PENDING)
	:: else
	fi
}

/* won: the page is not in the mail any more */
inline disarm(p)
{
	won = (mail[p] == IDLE);
	if
	:: !won ->
#ifdef PLAIN_DISARM /* a check, then a store */
		won = (mail[p] == ARMED);
		if
		:: won -> mail[p] = IDLE
		:: else
		fi
#else
		atomic {
			won = (mail[p] == ARMED);
			if
			:: won -> mail[p] = IDLE
			:: else
			fi
		}
#endif
	:: else
	fi
}

/* Where its bits say: partial, or full and armed. */
inline refile(p)
{
	again = true;
	do
	:: !again -> break
	:: again && freed[p] != 0 -> is_full[p] = false; again = false
	:: again && freed[p] == 0 ->
		is_full[p] = true;
		again = false;
		word = mail[p];
		if
#ifdef OVER_ARM /* looks for QUEUED only */
		:: word == QUEUED
#else
		:: word != IDLE
#endif
		:: else ->
			mail[p] = ARMED;
#ifndef NO_RECHECK /* arms and does not read again */
			if
			:: remote[p] != 0 ->
				disarm(p);
				if
				:: won -> harvest(p); again = true
				:: else
				fi
			:: else
			fi
#endif
		fi
	od
}

inline drain(z)
{
	atomic { page = box[z]; box[z] = NONE }
	do
	:: page == NONE -> break
	:: page != NONE ->
		next = link[page];
		assert(zone[page] == z);
		mail[page] = IDLE;
		harvest(page);
		if
		:: is_full[page] -> refile(page)
		:: else
		fi;
		page = next
	od;
	next = NONE;
	word = 0
}

/* The page changes hands. */
inline move(p, to)
{
	disarm(p);
	if
	:: won ->
		harvest(p);
		zone[p] = to;
		refile(p)
	:: else
	fi;
	word = 0;
	won = false
}

/* One object of page p out of the clients' hands: its bit, or 0. */
inline pick(p, b)
{
	if
	:: atomic { live[p] & 1 -> b = 1; live[p] = live[p] - 1 }
	:: atomic { live[p] & 2 -> b = 2; live[p] = live[p] - 2 }
	:: atomic { live[p] == 0 -> b = 0 }
	fi
}

inline any_page(p)
{
	if
	:: p = 0
	:: p = 1
	fi
}

#define CAN_TAKE(p) (zone[p] == 0 && freed[p] != 0)
#define CAN_FREE(p) (zone[p] == 0 && live[p] != 0)

proctype Owner()
{
	byte page = NONE, next = NONE, word, p, b, n;
	bool won, again;

	do
	:: n == OWNER_STEPS -> break
	:: n < OWNER_STEPS && box[0] != NONE -> n++; drain(0)
	/* take an object; when it was the last, the page is harvested, and full */
	:: n < OWNER_STEPS && (CAN_TAKE(0) || CAN_TAKE(1)) ->
		n++;
		if
		:: CAN_TAKE(0) -> p = 0
		:: CAN_TAKE(1) -> p = 1
		fi;
		b = (freed[p] & 1 -> 1 : 2);
		freed[p] = freed[p] - b;
		atomic { assert((live[p] & b) == 0); live[p] = live[p] | b; b = 0 }
		if
		:: freed[p] == 0 -> harvest(p); refile(p)
		:: else
		fi;
		p = 0
	/* free one locally: a full page becomes partial, and stays armed */
	:: n < OWNER_STEPS && (CAN_FREE(0) || CAN_FREE(1)) ->
		n++;
		if
		:: CAN_FREE(0) -> p = 0
		:: CAN_FREE(1) -> p = 1
		:: else -> p = 0
		fi;
		pick(p, b);
		assert((freed[p] & b) == 0 && (remote[p] & b) == 0);
		freed[p] = freed[p] | b;
		if
		:: b != 0 -> is_full[p] = false
		:: else
		fi;
		p = 0;
		b = 0
	:: n < OWNER_STEPS -> /* offline, adopt: both zones in the hands of this CPU */
		n++;
		atomic { !lock -> lock = true }
		any_page(p);
		if
		:: zone[p] == 0 -> move(p, 1)
		:: zone[p] == 1 -> move(p, 0)
		fi;
		p = 0;
		lock = false
	od;
	ended++
}

proctype Tender()
{
	byte page = NONE, next = NONE, word;
	bool won, again;

	atomic { !lock -> lock = true }
	drain(1);
	lock = false;
	ended++
}

proctype Freer(byte frees)
{
	byte p, b, z, word, n;

	do
	:: n == frees -> break
	:: n < frees ->
		n++;
		any_page(p);
		pick(p, b);
		if
		:: b == 0
		:: b != 0 ->
#ifdef STALE_OWNER /* the owner as it was before the free */
			z = zone[p];
#endif
			atomic {
				assert((remote[p] & b) == 0);
				remote[p] = remote[p] | b;
				sets++;
			}
			word = mail[p];
			if
			:: word == ARMED ->
#ifdef PLAIN_QUEUE /* a check, then a store */
				mail[p] = QUEUED;
#else
				atomic {
					word = mail[p];
					if
					:: word == ARMED -> mail[p] = QUEUED
					:: else
					fi
				}
#endif
				if
				:: word == ARMED ->
#ifndef STALE_OWNER
					z = zone[p];
#endif
					word = box[z];
					do
					:: link[p] = word;
						if
						:: atomic { box[z] == word -> box[z] = p }
							break
						:: atomic { box[z] != word -> word = box[z] }
						fi
					od
				:: else
				fi
			:: else
			fi
		fi;
		p = 0;
		b = 0;
		z = 0;
		word = 0
	od;
	ended++
}

/* When all is quiet. */
proctype Check()
{
	byte z, p, found, steps;

	atomic {
		ended == 4 ->
		assert(sets == harvested + PENDING);
		for (z : 0 .. 1) {
			p = box[z];
			do
			:: p == NONE -> break
			:: else ->
				assert(zone[p] == z && mail[p] == QUEUED);
				assert((found & (1 << p)) == 0); /* in a mailbox once */
				found = found | (1 << p);
				p = link[p]
			od
		}
		for (p : 0 .. 1) {
			assert((mail[p] == QUEUED) == ((found >> p) & 1));
			assert(remote[p] == 0 || !is_full[p] || ((found >> p) & 1));
			assert((live[p] | freed[p] | remote[p]) == (p == 0 -> 3 : 1));
		}
	}
}

init
{
	atomic {
		live[0] = 3;
		live[1] = 1;
		run Owner();
		run Tender();
		run Freer(FREES);
		run Freer(1);
		run Check()
	}
}
