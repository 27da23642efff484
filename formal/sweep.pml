/*
 * Recovery: engine/sweep.py, any number of processes, no lock (I13).
 *
 * Whether a branch is older than the grace is left to chance (I14), but for -DGRACE: there no begin takes as long.
 * Whoever includes this says: undecided(v, x, old), row_seen, past_grace.
 */

#ifndef R
#define R 1
#endif

/* `_prove_branch`. PROVED, or not: then a later sweep will. */
inline prove(i, v, r, again)
{
	again = false;
	do
	:: look_for_receipt(i, r);
	   if
	   :: r != ABSENT -> break
	   :: atomic { r == ABSENT && mem[i] == PREPARED -> r = LISTED }
	   :: atomic { r == ABSENT && mem[i] != PREPARED -> r = UNLISTED }
	   fi;
	   if
	   :: r == LISTED ->	/* `_confirmed_commit` */
		confirm(v);
		if :: v == COMMIT || v == ABORT -> carry_out(i, v, false, r) :: else fi;
		r = OPEN; break				/* the next sweep looks for its receipt */
	   :: else
	   fi;
	   look_for_receipt(i, r);			/* it may have been committed between the two looks */
	   if :: r != ABSENT -> break :: else fi;
	   confirm(v);
	   if
	   :: v == ENDED -> r = PROVED; break		/* by another */
#ifdef PROVES_LOST
	   :: v == NONE -> r = PROVED; break
#else
	   :: v == NONE -> r = OPEN; break		/* forgotten, and so no proof of anything */
#endif
#ifdef PROVES_ABORTS
	   :: v == ABORT && again -> quarantine(i); r = OPEN; break
	   :: v == ABORT && !again -> again = true
#else
	   :: v == ABORT -> r = OPEN; break		/* forgotten in a crash, and then aborted */
#endif
	   :: v == COMMIT && again -> quarantine(i); r = OPEN; break
	   :: v == COMMIT && !again -> again = true
	   fi
	od
}

/* `_still_listed`: the listing may be older than the end. */
inline quarantine_what_is_still_listed(i)
{
	i = POINT;
	do
	:: i < N && listed[i] && mem[i] == PREPARED -> quarantine(i); i++
	:: i < N && !(listed[i] && mem[i] == PREPARED) -> i++
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
	bool any, old, all, again, listed[N];
end:	do
	:: some(PREPARED) || jmem == COMMIT || row_seen ->
		/* `_list`: each database in its own time */
		i = POINT;
#ifndef AGE_LATER
		old = past_grace;
#endif
		do
		:: i < N -> atomic { listed[i] = (mem[i] == PREPARED); any = any || listed[i]; count(listed[i]); i++ }
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
			:: v != NONE && i < N && listed[i] -> carry_out(i, v, false, r); i++
			:: v != NONE && i < N && !listed[i] -> i++
			:: v == NONE || i == N -> break
			od;
#ifdef SWEEPS_STOP
			if :: v == ABORT && r == PROVED -> goto stopped :: else fi
#endif
		:: !any && row_seen ->	/* `_settle_unlisted`: a name, and no branch that was listed */
			undecided(v, false, old);
			if
			:: v == ABORT && (due || !some(PREPARED)) -> decide(ABORT, v)	/* `_listed_by_now` */
			:: else
			fi
		:: else
		fi;
		if
		:: jmem == COMMIT ->	/* `_prove_open`, from a plain read */
			i = POINT; all = true;
			do
			:: i < N -> prove(i, v, r, again); all = all && r == PROVED; i++
			:: else -> break
			od;
			if
			:: all -> end_record()
			:: else
			fi
		:: else
		fi;
		d_step {
			i = 0;
			do :: i < N -> listed[i] = false; i++ :: else -> break od;
			i = 0; r = NONE; v = NONE; any = false; old = false; all = false; again = false
		}
#ifdef INFERS_FROM_SHAPE
		; number = 0
#endif
	od
#ifdef SWEEPS_STOP
	; stopped: skip
#endif
}
