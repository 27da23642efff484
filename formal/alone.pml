/*
 * One writing branch alone: a one-phase commit with a receipt. A lost reply is settled by fencing the receipt's place,
 * and receipts and fences are removed after the retention.
 *
 * MARIA=1: InnoDB, which shows a commit before it flushes it. MARIA=0: PostgreSQL, SQLite.
 */

#ifndef MARIA
#define MARIA 1
#endif

mtype = { NONE, WORK, COMMITTED, GONE };	/* the branch */
mtype = { COMMIT, ABORT };			/* the row in the receipt's place, or NONE: a receipt, a fence; and answers */
mtype = { OK, CONFLICT, REFUSED, ASKED, SHOWN, DOUBT };

mtype mem = WORK, disk = NONE;
mtype rmem = NONE, rdisk = NONE;
mtype wire = NONE, reply = NONE;	/* the commit and its receipt, in one message */
mtype told = NONE;
bool ageing, expired;			/* half of the retention has passed; all of it */

#define rule(n, x) assert((x) || n == 0)

inline flush() { disk = (mem == COMMITTED -> COMMITTED : disk); rdisk = rmem }

inline tell(answer)
{
	d_step {
		rule(5, answer != COMMIT || disk == COMMITTED);
		rule(5, answer != ABORT || mem != COMMITTED && disk != COMMITTED);
		told = answer
	}
}

active proctype Database()
{
end:	do
	:: atomic { wire == ASKED && mem == WORK && rmem == NONE ->
		rule(5, told != ABORT);
		mem = COMMITTED; rmem = COMMIT; wire = SHOWN;
		if :: !MARIA -> flush() :: else fi
	   }
	:: atomic { wire == ASKED && mem == WORK && rmem != NONE -> mem = GONE; wire = NONE; reply = CONFLICT }
	:: atomic { wire == ASKED && mem == WORK -> mem = GONE; wire = NONE; reply = REFUSED }
	:: atomic { wire == SHOWN -> flush(); wire = NONE; reply = OK }
	:: atomic { rmem != rdisk || mem == COMMITTED && disk != COMMITTED -> flush() }
	:: atomic { mem == WORK || rmem != rdisk || wire == SHOWN ->
		mem = (disk == COMMITTED -> COMMITTED : GONE); rmem = rdisk; wire = NONE	/* a crash */
	   }
	od
}

/* Each resource's `receipt`: a forced UPDATE of that very row. */
inline confirm(v)
{
	atomic {
		v = rmem;
#ifndef UNCONFIRMED_RECEIPT
		if :: v != NONE -> flush() :: else fi
#endif
	}
}

active proctype Coordinator()
{
	mtype v = NONE;
	bool old;
	wire = ASKED;		/* phases.py `_commit_here` */
	if
	:: reply == OK -> tell(COMMIT); goto over
	:: reply == CONFLICT || reply == REFUSED -> tell(ABORT); goto over
	:: true			/* no answer: `_settle` */
	fi;
#ifdef AGE_FIRST
	old = ageing;
#endif
#ifdef SETTLES_BY_A_LOOK
	confirm(v);
	v = (v == NONE -> ABORT : v);
#else
	do			/* each resource's `fence` */
	:: atomic { rmem == NONE -> rmem = ABORT };
	   atomic {
		if
		:: rmem == ABORT -> flush(); v = ABORT; break
		:: else -> skip		/* a crash, or a clean-up, between: ask again */
		fi
	   }
	:: rmem != NONE ->		/* the INSERT conflicts */
		confirm(v);
		if
		:: v != NONE -> break
		:: v == NONE -> skip	/* it was there and is gone: ask again */
		fi
	:: true -> tell(DOUBT); goto over	/* blocked, or unreachable */
	od;
#endif
#ifndef AGE_FIRST
	old = ageing;
#endif
	if			/* `_may_be_forgotten`: past the retention an absent receipt means unknown */
#ifndef AGE_IGNORED
	:: v == ABORT && old -> tell(DOUBT)
#endif
	:: v == COMMIT || !old -> tell(v)
#ifdef AGE_IGNORED
	:: v == ABORT && old -> tell(v)
#endif
	fi;
over:	skip
}

/* questions.py `_by_receipt`: somebody else who asks. */
active proctype Asker()
{
	mtype v = NONE;
end:	do
	:: rmem == COMMIT ->
		confirm(v);
		if
		:: v == COMMIT -> rule(5, disk == COMMITTED)
		:: v != COMMIT -> skip
		fi;
		v = NONE
	od
}

/* ends.py `retire`, on other machines' clocks. No request is on its way for as long as the retention. */
active proctype Clock()
{
#ifdef OTHER_CLOCKS
	if :: ageing = true :: true fi;
#else
	ageing = true;
#endif
#ifdef OLD_MESSAGES
	expired = true;
#else
	atomic { wire == NONE || wire == ASKED && mem != WORK -> expired = true };
#endif
end:	do
	:: atomic { rmem != NONE -> rmem = NONE };
	   atomic { flush() }
	od
}

#ifdef WITNESS
/* Each of these is false, and Spin must find the run that it denies. */
ltl never_committed { [] !(told == COMMIT && reply == NONE) }
ltl never_aborted { [] !(told == ABORT && reply == NONE) }
ltl never_in_doubt_and_committed { [] !(told == DOUBT && disk == COMMITTED) }
ltl never_fenced { [] !(told == ABORT && reply == CONFLICT) }
ltl never_forgotten { [] !(told == COMMIT && expired && rdisk == NONE) }
ltl never_shown_and_lost { !(<> (mem == COMMITTED && <> (mem == GONE))) }
#endif
