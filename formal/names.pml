/*
 * One name, two attempts: the old one's commit is retried, by its caller and by the network, while the name gets a new
 * life. I10: nothing that was meant for the first reaches the second.
 *
 * By default an ended name stays reserved through the retention, which is longer than any caller retries; but a begin
 * that fails before X has prepared, so that nobody can have seen it staged, gives its name back. With -DREUSE
 * the second begin takes it over as soon as the first is decided, and callers name the attempt.
 * Crashes are the other models' business: here everything is durable as it is done.
 */

mtype = { NONE, PREPARED, COMMITTED, GONE };	/* a branch */
mtype = { COMMIT, ABORT, ENDED };		/* a decision */

mtype mem[2] = NONE;
mtype dec[2] = NONE;
byte row = 2;		/* the directory: whose the name is; 2: nobody's */
mtype late = NONE;	/* the first attempt's phase two, on its way for as long as it likes */
mtype told[2] = NONE;

/* xid.py: what a database knows a branch by. */
#ifdef NONCE_DROPPED
#define same_xid(a, b) true
#else
#define same_xid(a, b) (a == b)
#endif

#define rule(n, x) assert((x) || n == 0)

inline ends(a, verdict)
{
	rule(4, verdict != COMMIT || dec[a] == COMMIT || dec[a] == ENDED);
	rule(11, verdict != ABORT || dec[a] == ABORT);
	mem[a] = (verdict == COMMIT -> COMMITTED : GONE)
}

/* COMMIT PREPARED or ROLLBACK PREPARED of a's xid, as the database finds it. */
inline command(a, verdict)
{
	if
	:: mem[0] == PREPARED && same_xid(a, 0) -> ends(0, verdict)
	:: !(mem[0] == PREPARED && same_xid(a, 0)) && mem[1] == PREPARED && same_xid(a, 1) -> ends(1, verdict)
	:: else		/* unknown */
	fi
}
#define listed(a) (mem[0] == PREPARED && same_xid(a, 0) || mem[1] == PREPARED && same_xid(a, 1))

/* commit.py `_fence_own_begin`: one transaction of the journal's. */
inline fence(a, frees_name)
{
	dec[a] = ABORT;
	if
	:: frees_name && row == a -> row = 2
	:: else
	fi
}
#ifdef FREED_THOUGH_SEEN
#define SEEN_FREED true
#else
#define SEEN_FREED false
#endif

active proctype Network()
{
end:	do
	:: atomic { late != NONE -> command(0, late); late = NONE }
	od
}

/* verbs.py `begin_staged`, both attempts: X is all there is. */
active [2] proctype Begin()
{
	byte a = _pid - 1;
	/* directory.py `staging_rows`: an INSERT under a unique key; `replace`: only what has been decided makes room */
	if
	:: atomic { row == 2 -> row = a }
#ifdef REUSE
	:: atomic { row == 1 - a && dec[1 - a] != NONE && a == 1 -> row = a }
#endif
	:: true -> goto over		/* DuplicateTransaction */
	fi;
	if
	:: atomic { !listed(a) && dec[a] == NONE -> mem[a] = PREPARED };	/* 42710: one xid at a time */
		if
		:: true
		:: atomic { dec[a] == NONE -> fence(a, SEEN_FREED) }	/* its PREPARE had no answer: it may be listed */
		fi
	:: atomic { mem[a] == NONE && dec[a] == NONE -> fence(a, true) }	/* its work fails, or X refuses */
	fi;
over:	skip
}

/* verbs.py `finish_named`. The first attempt's caller commits, until it is told; the second's rolls back. */
active [2] proctype Caller()
{
	byte a = _pid - 3, found = 2;
	mtype v = NONE;
end:	do
	:: told[a] == NONE && mem[a] != NONE ->
#if defined(REUSE) && !defined(BY_NAME)
		found = a;
#else
		found = row;
#endif
		if
		:: found == 2 -> break		/* UnknownTransaction */
		:: found != 2 ->
			rule(10, found == a);
			atomic {		/* register.py `decide` */
				if
				:: dec[found] == NONE && listed(found) -> dec[found] = (a == 0 -> COMMIT : ABORT)
				:: else
				fi;
				v = (dec[found] == ENDED -> COMMIT : dec[found])
			};
			if
			:: v != NONE ->
				if	/* phase two, answered or not */
				:: atomic { command(found, v) }; told[a] = v
				:: atomic { a == 0 -> late = v }
				:: told[a] = v
				fi
			:: v == NONE -> skip
			fi
		fi;
		v = NONE; found = 2
	:: told[a] != NONE -> break
	od
}

/* sweep.py, and ends.py: a branch that is listed, and a commit that has proved itself. */
active proctype Recoverer()
{
	mtype v = NONE;
end:	do
	:: mem[0] == PREPARED ->
		atomic { if :: dec[0] == NONE -> dec[0] = ABORT :: else fi; v = dec[0] };
		atomic { command(0, (v == ENDED -> COMMIT : v)); v = NONE }
	:: mem[1] == PREPARED && dec[1] != NONE ->
		v = dec[1];
		atomic { command(1, (v == ENDED -> COMMIT : v)); v = NONE }
	:: atomic { dec[0] == COMMIT && mem[0] == COMMITTED -> dec[0] = ENDED }
	/* retention */
#ifdef NAME_FREED
	:: atomic { row == 0 && (dec[0] == ABORT || dec[0] == ENDED) -> row = 2 }
#else
	:: atomic { row == 0 && (dec[0] == ABORT || dec[0] == ENDED) && told[0] != NONE -> row = 2 }
#endif
	od
}

#ifdef WITNESS
/* Each of these is false, and Spin must find the run that it denies. */
ltl never_lived_twice { [] !(dec[0] == ENDED && mem[1] == PREPARED && row == 1) }
ltl never_late { [] !(mem[1] == PREPARED && late == COMMIT) }
ltl never_both_told { [] !(told[0] == COMMIT && told[1] == ABORT) }
ltl never_given_back { [] !(dec[0] == ABORT && mem[0] == NONE && row == 1 && mem[1] == PREPARED) }
#endif
