/*
 * Staged: a begin that prepares and lists a name, F processes that finish it by name, R recoverers, a deadline.
 *
 * HERE=1: branch 0 is X, on the journal's server, and prepares last. By X's database (branch 0 in MARIA, LITE):
 *   PostgreSQL: the directory row is committed unforced, and X's PREPARE flushes it; the decision is committed
 *               unforced before X's COMMIT PREPARED, in the same session;
 *   SQLite:     the row rides inside X's prepare, the decision inside its commit;
 *   MariaDB:    both are forced.
 * HERE=0: no X; the row is forced when all have prepared.
 * N=1 with EARLY: the row is committed before the work, in X's own session; on PostgreSQL unforced.
 */

#ifndef F
#define F 1
#endif
#define inside (HERE && lite(0))
#define unforced (HERE && !lite(0) && !maria(0))
#define flush_rows() ddisk = dmem
#define row_inside(i) if :: inside && i == 0 -> dmem = true :: else fi
#define delete_row() dmem = false
#define may_prepare(i) !(inside && i == 0 && jmem != NONE)	/* the row that rides inside is refused: fenced */
#define journal_free (!(HERE && lite(0) && mem[0] == WORK))	/* a SQLite file at work is locked for everybody else */
#define undecided_name (dmem && jmem == NONE)

bool dmem, ddisk;	/* the directory row */

#include "world.pml"

mtype wire = NONE;	/* the directory row, on its way */
mtype reply = NONE;
mtype begun = NONE;	/* what the caller of the begin was told */
bool dead;
bool over;		/* the begin is, or its process is dead */
bool due;		/* the deadline has passed */
#if F
bool same[F];		/* the server session in which a decision was written unforced still lives */
#endif

/* directory.py `staging_rows`: refused where a decision is seen. */
#ifdef EARLY
#define arrived (wire == ASKED && mem[0] == WORK)	/* in X's own session */
#else
#define arrived (wire == ASKED && journal_free)
#endif

inline crash_journal()
{
	jmem = jdisk; lowered = lowered || fmem && !fdisk; fmem = fdisk; dmem = ddisk; wire = NONE;
	if :: HERE -> restart(0) :: else fi;
#if F
	do :: i < F -> same[i] = false; i++ :: else -> i = 0; break od
#endif
}

/* The journal's server, and the way to it. */
active proctype Register()
{
	byte i;
end:	do
	:: atomic { arrived && jmem == NONE && !below_floor -> dmem = true; wire = SHOWN }
	:: atomic { arrived -> wire = NONE; reply = REFUSED }
	:: atomic { wire == SHOWN -> wire = NONE; reply = OK; if :: !unforced -> flush_journal() :: else fi }
	:: atomic { jmem != jdisk || fmem != fdisk || dmem != ddisk || HERE && mem[0] != disk[0] && disk[0] != NONE -> flush_journal() }
	:: atomic { strikes(jmem != jdisk || fmem != fdisk || dmem != ddisk || wire != NONE || HERE && can_crash(0)); crash_journal() }
#ifdef RESTARTS
	:: atomic { HERE && grip[0] == HIDDEN -> crash_journal() }
#endif
#ifdef LIVE
	:: atomic { strikes(!over); dead = true; over = true; if :: HERE && mem[0] == WORK -> mem[0] = GONE; agreed() :: else fi }
#endif
	od
}

active proctype Clock() { due = true }

/* verbs.py `finish_work` of a staged block. */
active proctype Begin()
{
	byte i;
	mtype r = NONE, v = NONE;
	bool all = true, own = false;
	{
#ifndef EARLY
	i = HERE;
	do
	:: i < N -> ask[i] = true; i++
	:: else -> i = HERE; break
	od;
	do
	:: atomic { i < N && vote[i] == YES -> i++ }
	:: atomic { i < N && vote[i] == NO -> all = false; i++ }
	:: atomic { i < N -> all = false; i++ }		/* no answer: not a vote */
	:: atomic { i == N -> break }
	od;
	if
	:: !all ->	/* `_count_vote`: nobody else knows of it, so nothing need be fenced */
		tell(ABORT); begun = ABORT;
		atomic { if :: HERE && mem[0] == WORK -> mem[0] = GONE; agreed() :: else fi };
		carry_out_all(HERE, ABORT, i, own, all, r);
		goto done
	:: else
	fi;
#endif
	if
	:: !inside ->	/* phases.py `_list` */
		wire = ASKED;
		if
		:: reply == OK
		:: reply == REFUSED -> goto fence
		:: true -> goto fence		/* no answer: it may come yet */
		fi
	:: else
	fi;
#if HERE
	ask[0] = true;		/* `_prepare_last` */
	if
	:: vote[0] == YES
	:: vote[0] == NO -> goto fence
	:: true -> goto fence
	fi;
#endif
	/* `_staged`: an answer that no crash takes back, unless it has been decided since. */
	atomic { rule(BEGIN_KEEPS, foreign || ddisk && every_disk(PREPARED) || stood != NONE || jmem != NONE || fmem); begun = STAGED };
	goto done;
fence:	/* `_fence_own_begin` */
#ifdef NO_BEGIN_FENCE
	v = ABORT;
#else
	decide(ABORT, v);
#endif
	if
	:: v == NONE || v == BELOW -> begun = DOUBT
	:: v == COMMIT || v == ABORT ->
		tell(v); begun = v;
		if
		:: v == ABORT -> atomic { if :: HERE && mem[0] == WORK -> mem[0] = GONE; agreed() :: else fi }
		:: else
		fi;
		carry_out_all(0, v, i, own, all, r)
	fi;
done:	atomic { over = true; i = 0; r = NONE; v = NONE; all = false; own = false }
	}
#ifdef LIVE
	unless { dead }
#endif
}

#if F
#ifdef RETENTION
#define session same[_pid - N - 4]
#else
#define session same[_pid - N - 3]
#endif

/* verbs.py `finish_named`, tried by its caller until it is told. Any process, any number. */
active [F] proctype Finisher()
{
	byte i;
	mtype r = NONE, v = NONE, wanted = COMMIT;
	bool all, own;
#ifndef LEAVES
	if
	:: true
	:: wanted = ABORT
	fi;
#endif
end_unknown:
	if
	:: atomic { begun == STAGED && wanted == COMMIT -> i = 0; v = NONE; goto deciding }	/* the process that has begun it: recent.py */
	:: atomic { dmem -> i = 0; r = NONE; look(v) }		/* until there is such a name: journals/directory.py `known` */
	fi;
	if
	:: v != NONE -> goto known
	:: else
	fi;
	if
	:: wanted == ABORT -> decide(ABORT, v); goto decided
	:: else
	fi;
	/* `_all_listed` */
#ifdef COMMITS_BEFORE_LISTED
	i = 1;
#endif
	do
	:: i < N && shows(i) -> i++
	:: i < N && !shows(i) ->
		look(v);
		if
		:: v != NONE -> goto known
		:: v == NONE && HERE && i == 0 -> goto end_unknown	/* StillBeginning */
		:: v == NONE && !(HERE && i == 0) -> rule(17, foreign || fmem); goto told_so	/* Heuristic: refused, loudly */
		fi
	:: i == N -> break
	od;
deciding:
	if
	:: unforced ->		/* the decision rides: phases.py `_commit_point`, postgres.py `commit_prepared` */
		if
		:: atomic { jmem == NONE && !below_floor -> written(COMMIT); jmem = COMMIT; session = true };
		   if
#ifdef ACROSS_SESSIONS
		   :: atomic { mem[0] == PREPARED -> ends(0, COMMIT); v = COMMIT; learn(v) }
#else
		   :: atomic { session && mem[0] == PREPARED -> ends(0, COMMIT); v = COMMIT; learn(v) }
#endif
		   :: !session || mem[0] != PREPARED -> skip	/* lost, or unknown: Undecided */
		   :: true -> skip				/* no answer */
		   fi;
		   session = false
		:: jmem != NONE || below_floor -> skip		/* Declined */
		:: true -> skip					/* no answer */
		fi
	:: inside ->
		if
		:: atomic { jmem == NONE && !below_floor && mem[0] == PREPARED ->
			written(COMMIT); jmem = COMMIT; ends(0, COMMIT); v = COMMIT; learn(v) }
		:: jmem != NONE || below_floor || mem[0] != PREPARED -> skip
		:: true -> skip
		fi
	:: else
	fi;
	if
	:: v == NONE -> decide(COMMIT, v)	/* `_decision_lost`: X is prepared, so its work cannot be gone */
	:: else
	fi;
	goto decided;
known:	confirm(v);				/* `_decided_before` */
	v = (v == ENDED -> COMMIT : v);
decided:
	if
	:: v == NONE || v == BELOW -> goto end_unknown
	:: else
	fi;
	tell(v);
	if
	:: v == ABORT -> carry_out_all(0, ABORT, i, own, all, r)
	:: else ->
		carry_out_all(0, COMMIT, i, own, all, r);
		if
		:: all -> end_record()
		:: else
		fi
	fi;
told_so:
	atomic { i = 0; r = NONE; v = NONE; all = false; own = false }
}
#endif

/* sweep.py `_known_undecided`, and the table of protocol/recovery.py. */
inline undecided(v, x, old)
{
	if
	:: !dmem && old -> v = ABORT				/* NOTHING */
	:: dmem && due -> v = ABORT				/* STAGED_DUE */
	:: dmem && !due && HERE && !x && old -> v = ABORT	/* STAGED_PARTLY */
	:: dmem && !due && (!HERE || x) || !due && !old || !dmem && !old -> skip
	fi
}
#ifdef GRACE
#define past_grace over		/* no begin takes longer */
#else
#define past_grace true
#endif
#ifdef EARLY
#define row_seen undecided_name		/* a name without a branch that is prepared: elsewhere all have, before it is listed */
#else
#define row_seen false
#endif
#include "sweep.pml"

/* ---- claims ----------------------------------------------------------------------------------------------------- */

#if N == 1
#define all(s) (mem[0] == s)
#elif N == 2
#define all(s) (mem[0] == s && mem[1] == s)
#else
#define all(s) (mem[0] == s && mem[1] == s && mem[2] == s)
#endif
#ifdef LIVE
/* I8, with servers that stay up in the end, a deadline that comes, and a recoverer that keeps sweeping. */
ltl no_orphan_0 { [] (mem[0] == PREPARED -> <> (mem[0] != PREPARED)) }
#if N > 1
ltl no_orphan_1 { [] (mem[1] == PREPARED -> <> (mem[1] != PREPARED)) }
#endif
ltl no_lasting_name { [] (ddisk -> <> (jmem != NONE)) }
ltl no_open_record { [] (jdisk == COMMIT -> <> (jmem == ENDED || foreign)) }
#endif
#ifdef WITNESS
/* Each of these is false, and Spin must find the run that it denies. */
ltl never_staged { [] !(begun == STAGED && ddisk && jmem == NONE) }
ltl never_committed { [] !(begun == STAGED && told == COMMIT && jdisk == ENDED && all(COMMITTED)) }
ltl never_rolled_back { [] !(begun == STAGED && told == ABORT && !due && all(GONE)) }
ltl never_overdue { [] !(begun == STAGED && told == NONE && jdisk == ABORT && all(GONE)) }
ltl never_found_committed { [] !(begun == COMMIT) }
ltl never_prepared_after_the_fence { !(<> (begun == ABORT && mem[0] != PREPARED && <> (mem[0] == PREPARED && <> (mem[0] == GONE)))) }
ltl never_lost_the_row { !(<> (dmem && !ddisk && <> (!dmem))) }
ltl never_lost_the_ride { !(<> (jmem == COMMIT && jdisk == NONE && <> (jmem == NONE && <> (told == COMMIT)))) }
#endif
