/*
 * Recovery: engine/sweep.py, any number of processes, no lock (I13).
 *
 * Whether a branch is older than the grace is left to chance (I14), but for -DGRACE: there no begin takes as long.
 * Whoever includes this says: undecided(v, x, old), row_seen, past_grace.
 */

#ifndef R
#define R 1
#endif

#define each(i, is, step) \
	i = POINT; do :: i < N && (is) -> step; i++ :: i < N && !(is) -> i++ :: i == N -> break od

#if N == 1
#define any_left(s) (!POINT && left[0] == s)
#define all_left(s) (POINT || left[0] == s)
#elif N == 2
#define any_left(s) (!POINT && left[0] == s || left[1] == s)
#define all_left(s) ((POINT || left[0] == s) && left[1] == s)
#else
#define any_left(s) (!POINT && left[0] == s || left[1] == s || left[2] == s)
#define all_left(s) ((POINT || left[0] == s) && left[1] == s && left[2] == s)
#endif

/* `_commit_listed`: the next sweep looks for its receipt. */
inline commit_listed(i, v, r)
{
	confirm(v);
	if :: v == COMMIT || v == ABORT -> carry_out(i, v, false, r) :: else fi;
	left[i] = OPEN
}

/* `_look_at_records`. */
inline look_at_record(i, v, again)
{
	atomic {
		if
		:: v == ENDED -> left[i] = PROVED		/* by another */
#ifdef PROVES_LOST
		:: v == NONE -> left[i] = PROVED
#else
		:: v == NONE -> left[i] = OPEN			/* forgotten, and so no proof of anything */
#endif
#ifdef ACCUSES_ABORTS
		:: v == ABORT && again -> quarantine(i); left[i] = OPEN
		:: v == ABORT && !again -> skip
#else
		:: v == ABORT -> left[i] = OPEN			/* forgotten in a crash, and then aborted */
#endif
		:: v == COMMIT && again -> quarantine(i); left[i] = OPEN
		:: v == COMMIT && !again -> skip		/* and again */
		fi
	}
}

/* `_proved`: all branches together. Those that are PROVED in the end are; of the others a later sweep will know. */
inline prove(i, v, r, again)
{
	again = false;
	do
	:: each(i, left[i] == ABSENT, look_for_receipt(i, left[i]));
	   each(i, left[i] == ABSENT, left[i] = (shows(i) -> LISTED : UNLISTED));
	   each(i, left[i] == LISTED, commit_listed(i, v, r));
	   each(i, left[i] == UNLISTED, look_for_receipt(i, left[i]));	/* it may have been committed between the two looks */
	   if
	   :: any_left(ABSENT) -> confirm(v)
	   :: else
	   fi;
	   each(i, left[i] == ABSENT, look_at_record(i, v, again));
	   if
	   :: any_left(ABSENT) -> again = true
	   :: else -> break
	   fi
	od
}

/* `_look_again`: the listing may be older than the end. */
inline quarantine_what_is_still_listed(i)
{
	i = POINT;
	do
	:: i < N && listed[i] && shows(i) -> quarantine(i); i++
	:: i < N && !(listed[i] && shows(i)) -> i++
	:: i == N -> break
	od
}

#ifdef INFERS_FROM_SHAPE
#define count(one) number = number + one
#else
#define count(one)
#endif

active [R] proctype Recoverer()
{
#ifdef INFERS_FROM_SHAPE
	byte number;
#endif
	byte i = 0;
	mtype r = NONE, v = NONE;
	mtype left[N] = ABSENT;		/* what is left to prove of each branch */
	bool any, old, again, listed[N];
end:	do
	:: some_listed || jmem == COMMIT || row_seen ->
		/* `_list`: each database in its own time */
		i = POINT;
#ifndef AGE_LATER
		old = past_grace;
#endif
		do
		:: i < N -> atomic { listed[i] = shows(i); any = any || listed[i]; count(listed[i]); i++ }
		:: else -> break
		od;
		if
		:: any ->	/* `_settle_listed`: D, then the table */
			confirm(v);
			if
			:: v == NONE && below_floor -> v = BELOW	/* the floor is read after the records */
			:: v == NONE && !below_floor ->
#ifdef AGE_LATER
				undecided(v, listed[0], past_grace);
#else
				undecided(v, listed[0], old);
#endif
#ifdef INFERS_FROM_SHAPE
				if :: N - POINT == number -> decide(COMMIT, v) :: else fi;	/* all are there */
#endif
#ifndef NO_FENCE
				if
				:: v == ABORT ->
					decide(ABORT, v);
#ifdef QUARANTINES_UNSEEN
					if
					:: v == BELOW ->
						i = POINT;
						do
						:: i < N && listed[i] -> quarantine(i); i++
						:: i < N && !listed[i] -> i++
						:: i == N -> v = NONE; break
						od
					:: else
					fi
#endif
				:: else
				fi
#endif
			:: else
			fi;
			if
			:: v == ENDED || v == BELOW -> quarantine_what_is_still_listed(i); v = NONE
			:: else
			fi;
			i = POINT;
			do
			:: v != NONE && i < N && listed[i] ->
				carry_out(i, v, false, r);
				if :: v == COMMIT && r == PROVED -> left[i] = PROVED :: else fi;
				i++
			:: v == ABORT && i < N && !listed[i] -> alarm_if_committed(i, r); i++
			:: v != NONE && v != ABORT && i < N && !listed[i] -> i++
			:: v == NONE || i == N -> break
			od;
#ifdef SWEEPS_STOP
			if :: v == ABORT && r == PROVED -> goto stopped :: else fi
#endif
		:: !any && row_seen ->	/* `_settle_unlisted`: a name, and no branch that was listed */
			undecided(v, false, old);
			if
			:: v == ABORT && (due || !some_listed) ->	/* `_prepared_by_now` */
				decide(ABORT, v);
				if
				:: v == ABORT -> each(i, true, alarm_if_committed(i, r))
				:: else
				fi
			:: else
			fi
		:: else
		fi;
		if
		:: jmem == COMMIT ->	/* `_prove_open`, from a plain read */
			prove(i, v, r, again);
			if
			:: all_left(PROVED) -> end_record()
			:: else
			fi
		:: else
		fi;
		d_step {
			i = 0;
			do :: i < N -> listed[i] = false; left[i] = ABSENT; i++ :: else -> break od;
			i = 0; r = NONE; v = NONE; any = false; old = false; again = false
		}
#ifdef INFERS_FROM_SHAPE
		; number = 0
#endif
	od
#ifdef SWEEPS_STOP
	; stopped: skip
#endif
}
