/*
 * What the models of two-phase commit share: databases that keep or forget, the register, and one branch's end.
 *
 * A database shows one thing (`mem`) and after a crash would show another (`disk`). Each step is one command as a
 * server carries it out; between two steps anything else may happen. I1 ... are the rules of the contract; a name in
 * `quotes` is a function of src/nodoubt.
 *
 * Whoever includes this says: flush_rows(), row_inside(i), delete_row(), may_prepare(i), journal_free, undecided_name.
 */

#ifndef N
#define N 2		/* branches, 1 to 3 */
#endif
#ifndef HERE
#define HERE 0		/* 1: branch 0 lives in the journal's database: they crash, and are flushed, together */
#endif
#ifndef POINT
#define POINT 0		/* 1: and its one-phase commit carries the decision */
#endif
#ifndef MARIA
#define MARIA 2		/* a bit for each branch on MariaDB */
#endif
#ifndef LITE
#define LITE 0		/* a bit for each branch on SQLite; what has neither is on PostgreSQL */
#endif
#define maria(i) ((MARIA >> (i)) & 1)
#define lite(i) ((LITE >> (i)) & 1)

mtype = { NONE, WORK, PREPARED, COMMITTED, GONE };	/* a branch; GONE: rolled back, or lost with its session */
mtype = { COMMIT, ABORT, ENDED };			/* the register's row, or NONE; ENDED: a COMMIT, every branch proved */
mtype = { YES, NO };					/* votes */
mtype = { OK, CONFLICT, BELOW, REFUSED };		/* replies, or NONE: no answer yet, or never */
mtype = { ASKED, SHOWN };				/* a request on the wire; done, but not flushed or not answered */
mtype = { PROVED, ABSENT, OPEN, UNKNOWN, UNLISTED, LISTED, BROKEN };	/* how far a branch has been brought */
mtype = { DOUBT, STAGED };				/* answers, beside COMMIT and ABORT */
mtype = { HELD, ENDING, HIDDEN };			/* grips of a session, or NONE: any other may end the branch */

mtype mem[N] = WORK, disk[N] = NONE;
mtype grip[N] = NONE;	/* MariaDB: how the session that prepared it keeps others from ending it, see `traps` */
bool receipt[N];	/* written by the commit, deleted after the end record; seen only if the commit is seen */
bool ask[N];		/* a PREPARE is on the wire: it may arrive at any time, or never */
mtype vote[N] = NONE;
#ifdef LATE
mtype late[N] = NONE;	/* a phase-two command whose sender waits no longer: so is that */
#define leave_behind(i, verdict) late[i] = verdict
#else
#define leave_behind(i, verdict)
#endif

mtype jmem = NONE, jdisk = NONE;	/* the register */
bool fmem, fdisk;			/* the floor is above this attempt */

/* What the rules speak of, and nobody in the model reads. */
mtype stood = NONE;	/* the verdict that somebody has acted on, or was told */
mtype told = NONE;	/* what the caller was told */
bool foreign;		/* a stranger has ended a branch */
bool alarmed;		/* something was quarantined */
bool lowered;		/* a crash has forgotten a floor that could be seen */

#if N == 1
#define some(s) (mem[0] == s)
#define some_listed shows(0)
#define every_disk(s) (disk[0] == s)
#define forget_receipts() receipt[0] = false
#elif N == 2
#define some(s) (mem[0] == s || mem[1] == s)
#define some_listed (shows(0) || shows(1))
#define every_disk(s) ((POINT || disk[0] == s) && disk[1] == s)
#define forget_receipts() receipt[0] = false; receipt[1] = false
#else
#define some(s) (mem[0] == s || mem[1] == s || mem[2] == s)
#define some_listed (shows(0) || shows(1) || shows(2))
#define every_disk(s) ((POINT || disk[0] == s) && disk[1] == s && disk[2] == s)
#define forget_receipts() receipt[0] = false; receipt[1] = false; receipt[2] = false
#endif
#define decided_commit (jdisk == COMMIT || jdisk == ENDED || forgotten)
#define forgotten (fmem && stood == COMMIT)	/* it was ENDED, and retention has deleted it */

/* Trouble that anybody may meet at any time. Where a claim says that things end, there is only so much of it (I8). */
#ifdef LIVE
byte trouble = LIVE;
#define strikes(where) (where) && trouble > 0 -> trouble--
#else
#define strikes(where) (where)
#endif

/* ---- rules ------------------------------------------------------------------------------------------------------ */

/* An assertion that says which rule of the contract it is: `n == 0` is false, and is shown with it. */
#define rule(n, x) assert((x) || n == 0)
#define BEGIN_KEEPS 100		/* what was answered as staged survives a crash */
#define LEFT_ALONE 101		/* what is staged and complete is left until its deadline */

/* I1, over what anybody can see. */
inline agreed() { rule(1, foreign || !(some(COMMITTED) && some(GONE))) }

/* I3: what was once acted on is what everybody is ever told. */
inline learn(v)
{
	if
	:: v == COMMIT || v == ABORT -> rule(3, stood == NONE || stood == v); stood = v
	:: else
	fi
}

/* I2, I5: what COMMIT may be written on. */
inline written(want)
{
	rule(2, want != COMMIT || foreign || every_disk(PREPARED));
	rule(5, want != COMMIT || told != ABORT);
#ifdef LEAVES
	rule(LEFT_ALONE, want != ABORT || begun != STAGED || due)
#endif
}

/* I5, I12. */
inline tell(answer)
{
	d_step {
		rule(5, answer != COMMIT || decided_commit);
		rule(5, answer != ABORT || jmem != COMMIT && jmem != ENDED && !forgotten);
		rule(12, told == NONE || told == DOUBT || told == answer);
		told = answer
	}
}

/* I17, and no false alarm: a stranger has been here, or the journal no longer knows, and the branch has not committed. */
inline quarantine(i)
{
	d_step { rule(17, foreign || lowered || fmem && disk[i] != COMMITTED); alarmed = true }
}

/* ---- databases -------------------------------------------------------------------------------------------------- */

inline flush_branch(i) { if :: mem[i] != WORK -> disk[i] = mem[i] :: else fi }

/* The log is flushed in order: a flush covers everything that its server shows. */
inline flush_journal()
{
	jdisk = jmem; fdisk = fmem;
	flush_rows();
	if :: HERE -> flush_branch(0) :: else fi
}

inline flush(i)
{
	flush_branch(i);
	if :: HERE && i == 0 -> jdisk = jmem; fdisk = fmem; flush_rows() :: else fi
}

/* After a crash: active work is lost, what was prepared is kept, and MariaDB forgets an XA ROLLBACK, and a commit that
   was seen but not flushed. */
inline restart(i)
{
	mem[i] = (disk[i] == NONE -> GONE : disk[i]);
	grip[i] = NONE;
	agreed()
}
#define can_crash(i) (mem[i] == WORK || grip[i] != NONE || mem[i] != disk[i] && disk[i] != NONE)

/* XA RECOVER, pg_prepared_xacts. */
#define shows(i) (mem[i] == PREPARED && grip[i] != HIDDEN)

/* While the session that prepared a branch is ENDING, MariaDB may answer OK to another's XA COMMIT or XA ROLLBACK, and do
   nothing: then the branch is HIDDEN, still prepared, until the server restarts. mariadb_finishing.py asks first whether
   that session is listed. Whether it is, and whether it can be asked, is left to chance: safety is the receipt's. */
#define traps(i) (grip[i] == ENDING)
inline hide(i) { grip[i] = HIDDEN }

/* Where a claim says that things end (I8), a server that hides a branch is restarted some day. */
#if defined(LIVE) && !defined(NEVER_RESTARTS)
#define RESTARTS
#endif

/* PREPARE arrives. Each resource's `prepare`: only the server's own word is a yes (I2). What is listed is flushed. */
inline prepares(i)
{
	ask[i] = false; mem[i] = PREPARED; grip[i] = (maria(i) -> HELD : NONE); vote[i] = YES;
	row_inside(i);
	flush(i)
}

inline refuses(i)
{
	ask[i] = false; mem[i] = GONE; agreed();
#ifdef TAG_UNCHECKED
	vote[i] = YES	/* PREPARE TRANSACTION in a failed transaction answers ROLLBACK, without an error */
#else
	vote[i] = NO
#endif
}

/* COMMIT PREPARED, XA COMMIT, or SQLite's one local transaction, or the rollback, as it takes effect. InnoDB shows a
   commit before it flushes it, and does not flush a rollback for its answer. I4: none before a durable decision. */
inline ends(i, verdict)
{
	if
	:: verdict == COMMIT ->
		mem[i] = COMMITTED;
#ifdef RECEIPT_APART
		receipt[i] = !lite(i)
#else
		receipt[i] = true
#endif
	:: else -> mem[i] = GONE
	fi;
	grip[i] = NONE;
	if :: !maria(i) -> flush(i) :: else fi;
	rule(4, verdict != COMMIT || decided_commit);
	rule(11, verdict != COMMIT || stood != ABORT);
	agreed()
}

inline stranger(i, end)
{
	foreign = true; mem[i] = end; grip[i] = NONE; receipt[i] = (end == COMMITTED); flush(i)
}

#define shares(i) (HERE && i == 0)	/* its server is the journal's, and crashes with it: see Register */

/* A branch's server, and the way to it. */
active [N] proctype Database()
{
	byte i = _pid;
end:	do
	:: atomic { ask[i] && mem[i] == WORK && may_prepare(i) -> prepares(i) }
	:: atomic { ask[i] && (mem[i] == WORK || mem[i] == GONE) -> refuses(i) }
#ifdef LATE
	:: atomic { late[i] != NONE && mem[i] == PREPARED && grip[i] == NONE -> ends(i, late[i]); late[i] = NONE }
	:: atomic { late[i] != NONE && traps(i) -> hide(i); late[i] = NONE }
#endif
	:: atomic { strikes(grip[i] == HELD); grip[i] = ENDING }			/* its client is gone */
	:: atomic { grip[i] == ENDING -> grip[i] = NONE }
	:: atomic { !shares(i) && mem[i] != disk[i] && disk[i] != NONE -> flush(i) }
	:: atomic { strikes(!shares(i) && can_crash(i)); restart(i) }
#ifdef RESTARTS
	:: atomic { !shares(i) && grip[i] == HIDDEN -> restart(i) }
#endif
#ifdef FOREIGN
	:: atomic { shows(i) && !foreign -> stranger(i, COMMITTED) }
	:: atomic { shows(i) && !foreign -> stranger(i, GONE) }
	:: atomic { traps(i) -> hide(i) }			/* by a stranger's command */
#endif
	od
}

/* ---- the register ----------------------------------------------------------------------------------------------- */

/* The condition in every INSERT of a decision: rows.py `above_floor`. */
#ifdef NO_FLOOR
#define below_floor false
#else
#define below_floor fmem
#endif

/* journals/sql.py `look`: a plain read, which flushes nothing. */
inline look(v) { v = jmem }

/* journals/sql.py `confirm`: a forced UPDATE of that very row. ENDED is returned as it is. */
inline confirm(v)
{
	atomic {
		v = jmem;
#ifndef ACT_ON_VISIBLE
		if :: v != NONE -> flush_journal() :: else fi;
#endif
		if :: v == ENDED -> learn(COMMIT) :: else -> learn(v) fi
	}
}

/* engine/register.py `decide`: a plain INSERT, forced; a conflict is confirmed; no row: start over.
   NONE: no answer. BELOW: the journal no longer remembers. */
inline decide(want, v)
{
	v = NONE;
	do
	:: atomic { jmem == NONE && !below_floor && journal_free ->
#ifndef NO_CAS
		written(want); jmem = want
#endif
	   };
#ifdef NO_CAS
	   atomic { written(want); jmem = want };	/* read, and then written */
#endif
	   atomic {
		if
		:: jmem == want -> flush_journal(); v = want; learn(v); break
		:: else -> skip		/* its server has crashed between: nobody knows, so ask again */
		fi
	   }
	:: atomic { jmem != NONE ->
		v = (jmem == ENDED -> COMMIT : jmem);
#ifndef CONFIRM_BY_INSERT
		flush_journal();	/* an INSERT that conflicts flushes nothing: confirm */
#endif
		learn(v); break
	   }
	:: atomic { jmem == NONE && below_floor -> v = BELOW; break }
	:: atomic { strikes(true); break }
	od
}

/* ---- one branch's end ------------------------------------------------------------------------------------------- */

/* I7: what counts as proof that a branch has committed. */
inline proved(i, verdict, r)
{
	r = PROVED;
	rule(7, verdict != COMMIT || disk[i] == COMMITTED)
}

/* Each resource's `receipt`: a forced UPDATE of that row. On InnoDB it waits for the branch itself, in vain if that is
   prepared: no answer. */
inline look_for_receipt(i, r)
{
	atomic {
		if
		:: maria(i) && mem[i] == PREPARED -> r = OPEN
		:: mem[i] == COMMITTED && receipt[i] ->
#ifndef UNCONFIRMED_RECEIPT
			flush(i);
#endif
			proved(i, COMMIT, r)
		:: else -> r = ABSENT
		fi
	}
}

/* After an ABORT, a branch that is not prepared was rolled back; or a stranger has committed it, which is told (I17).
   PROVED, BROKEN, or OPEN: no answer. */
inline alarm_if_committed(i, r)
{
#ifdef UNLISTED_IS_ROLLED_BACK
	r = PROVED
#else
	look_for_receipt(i, r);
	if
	:: r == PROVED -> quarantine(i); r = BROKEN
	:: r == ABSENT -> r = PROVED
	:: r == OPEN
	fi
#endif
}

/* mariadb.py `free`: end the session that holds the branch. */
#ifdef NEVER_FREES
#define free(i)
#else
#define free(i) grip[i] = (grip[i] == HELD -> ENDING : grip[i])
#endif

/* engine/branches.py `carry_out`, one try. `own`: on the session that prepared it. */
#define can_end(i, own) (mem[i] == PREPARED && (grip[i] == NONE || own && grip[i] == HELD))

/* What an OK to a COMMIT is worth: mariadb_finishing.py `require_done`. */
#ifdef XA_OK_IS_PROOF
#define ok_counts(i, own) (mem[i] == COMMITTED || grip[i] == HIDDEN)
#else
#define ok_counts(i, own) (mem[i] == COMMITTED && (own || !maria(i) || receipt[i]))
#endif

inline carry_out(i, verdict, own, r)
{
	if
	:: atomic { can_end(i, own) -> ends(i, verdict); r = (verdict == COMMIT -> SHOWN : PROVED) };
	   if
	   :: r == SHOWN -> atomic {
#ifdef RECEIPT_APART
		receipt[i] = true;
#endif
		if	/* flushed, and answered */
		:: ok_counts(i, own) -> flush(i); proved(i, verdict, r)
		:: else -> r = OPEN
		fi }
	   :: else
	   fi
	:: atomic { traps(i) && !own -> hide(i); r = (verdict == COMMIT -> SHOWN : PROVED) };
	   if
	   :: r == SHOWN -> atomic {
		if
		:: ok_counts(i, own) -> flush(i); proved(i, verdict, r)
		:: else -> r = OPEN	/* no receipt: nothing was committed. Asked again until it has come back */
		fi }
	   :: else
	   fi
	:: atomic { !can_end(i, own) ->
#ifdef NOTA_IS_DONE
		proved(i, verdict, r)
#else
		r = UNKNOWN	/* 42704, XAER_NOTA: no success (I7) */
#endif
	   };
	   if	/* `_look` */
	   :: atomic { r == UNKNOWN && shows(i) -> free(i); r = OPEN }	/* and again */
	   :: atomic { r == UNKNOWN && !shows(i) -> r = UNLISTED }
	   :: r == PROVED
	   fi;
	   if
	   :: r == UNLISTED && verdict == COMMIT -> look_for_receipt(i, r)
	   :: r == UNLISTED && verdict == ABORT -> alarm_if_committed(i, r)
	   :: r != UNLISTED
	   fi
	:: atomic { strikes(true); leave_behind(i, verdict); r = OPEN }	/* no answer; it may arrive yet */
	fi
}

/* The same for all branches, each until it is proved, or left to recovery. */
inline carry_out_all(from, verdict, i, own, all, r)
{
	atomic { i = from; all = true };
	do
	:: i < N ->
		carry_out(i, verdict, own, r);
		if
		:: r == PROVED -> i++; own = true
		:: r != PROVED && r != BROKEN -> own = false
		:: r != PROVED -> all = false; i++; own = true	/* Unfinished */
		fi
	:: else -> break
	od
}

/* engine/ends.py `flush`: the end is forced, and then the receipts may go. I6. */
inline end_record()
{
	atomic {
		if
		:: jmem == COMMIT -> rule(6, every_disk(COMMITTED)); jmem = ENDED
		:: else
		fi
	};
	atomic {
		if
		:: jmem == ENDED -> flush_journal(); forget_receipts()
		:: else		/* its server has crashed between; another will end it */
		fi
	}
}

/* ---- retention -------------------------------------------------------------------------------------------------- */

#ifdef RETENTION
#ifdef DELETE_FIRST
#define may_delete (jmem == ABORT || jmem == ENDED)
#else
#define may_delete ((jmem == ABORT || jmem == ENDED) && fmem)
#endif

/* For a claim that things are told: nothing lasts as long as the retention, neither a PREPARE on its way nor a branch
   that every sweep would roll back. */
#ifdef LIVE
#define lasting(i) (ask[i] || mem[i] == PREPARED)
#else
#define lasting(i) false
#endif

/* engine/ends.py `retire`, at any time: the floor rises unless a COMMIT is open below it, and then what has ended may
   go, in a transaction of its own. Before an ABORT goes its branches are looked for: `_aborts_were_kept`. What is
   quarantined is kept. */
active proctype Retire()
{
	byte i;
	mtype r = NONE;
end:	do
	:: atomic { !fmem && jmem != COMMIT && !undecided_name -> fmem = true };
	   atomic { flush_journal() }
	:: may_delete && !lasting(0) && !lasting(N - 1) ->
		r = PROVED;
		if
		:: jmem == ABORT ->
			i = POINT;
			do
			:: i < N && r == PROVED -> alarm_if_committed(i, r); i++
			:: i == N || r != PROVED -> break
			od
		:: jmem != ABORT
		fi;
		atomic {
			if
			:: r == PROVED && may_delete && !alarmed -> jmem = NONE; delete_row()
			:: else
			fi;
			i = 0; r = NONE
		};
		atomic { flush_journal() }
	od
}
#endif
