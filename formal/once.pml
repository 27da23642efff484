/*
 * At once: work on N branches, then two-phase commit by one coordinator, with R recoverers; -DRETENTION.
 *
 * POINT=1 (with HERE=1): branch 0 is the commit point, whose own one-phase commit carries the decision.
 */

#define flush_rows()
#define row_inside(i)
#define delete_row()
#define may_prepare(i) true
#define journal_free (!(POINT && lite(0) && mem[0] == WORK))	/* a SQLite file at work is locked for everybody else */
#define undecided_name false
#include "world.pml"

mtype wire = NONE;	/* the coordinator's COMMIT: ASKED, then SHOWN and not flushed */
mtype reply = NONE;
bool dead;

inline undo_point() { if :: POINT && mem[0] == WORK -> mem[0] = GONE; agreed() :: else fi }
#define arrived (wire == ASKED && (!POINT || mem[0] == WORK))

#ifdef FLOOR_UNHELD
mtype = { CHECKED };	/* the floor was read, and may rise before the row is written */
#endif

inline crash_journal()
{
	jmem = jdisk; lowered = lowered || fmem && !fdisk; fmem = fdisk;
	if :: wire == SHOWN -> wire = NONE :: else fi;
	if :: HERE -> restart(0) :: else fi
}

/* The journal's server, and the way to it. The row, or the point's `commit_alone` with the row riding in it. */
active proctype Register()
{
end:	do
#ifdef FLOOR_UNHELD
	:: atomic { arrived && jmem == NONE && !below_floor -> wire = CHECKED }
	:: atomic { wire == CHECKED && jmem == NONE && (!POINT || mem[0] == WORK) ->
#else
	:: atomic { arrived && jmem == NONE && !below_floor ->
#endif
		written(COMMIT); jmem = COMMIT; wire = SHOWN;
		if :: POINT -> mem[0] = COMMITTED; receipt[0] = true; agreed() :: else fi
	   }
	:: atomic { arrived && jmem != NONE -> wire = NONE; reply = CONFLICT; undo_point() }
	:: atomic { arrived && jmem == NONE && below_floor -> wire = NONE; reply = BELOW; undo_point() }
	:: atomic { arrived -> wire = NONE; reply = REFUSED; undo_point() }
	:: atomic { wire == SHOWN -> flush_journal(); wire = NONE; reply = OK }
	:: atomic { wire != SHOWN && (jmem != jdisk || fmem != fdisk) -> flush_journal() }
	:: atomic { strikes(jmem != jdisk || fmem != fdisk || wire == SHOWN || HERE && can_crash(0)); crash_journal() }
#ifdef RESTARTS
	:: atomic { HERE && grip[0] == HIDDEN -> crash_journal() }
#endif
#ifdef LIVE
	:: atomic { strikes(!dead); dead = true; undo_point() }	/* kill -9 of the coordinator */
#endif
	od
}

/* protocol/commit.py, driven by engine/phases.py. Not to be scheduled any more is to have been killed. */
active proctype Coordinator()
{
	byte i = POINT;
	mtype r = NONE, v = NONE;
	bool all = true, own = true, maybe = false;
	{
	/* `_ask_votes`; `_turn`: every answer is in before the machine goes on */
	do
	:: i < N -> ask[i] = true; i++
	:: else -> i = POINT; break
	od;
	do
	:: atomic { i < N && vote[i] == YES -> i++ }
	:: atomic { i < N && vote[i] == NO -> all = false; i++ }
	:: atomic { i < N -> all = false; i++ }		/* no answer: not a vote */
	:: atomic { i == N -> break }
	od;
	if
	:: !all -> goto aborting
	:: else
	fi;
#ifdef DECISION_AFTER_COMMIT
	carry_out_all(1, COMMIT, i, own, all, r);
#endif
	wire = ASKED;
#if POINT
	/* `_commit_here` */
	if
	:: reply == OK -> v = COMMIT; learn(COMMIT)
	:: reply == CONFLICT || reply == BELOW || reply == REFUSED -> goto aborting	/* Declined: surely not done */
	:: true ->	/* Undecided: `_decision_lost` */
#ifdef BARE_COMMIT
		decide(COMMIT, v);
#else
		decide(ABORT, v);
#endif
		if
		:: v == NONE || v == BELOW -> tell(DOUBT); goto over
		:: else
		fi
	fi;
#else
	/* register.py `decide`, whose request may outlive the wait for it */
	do
	:: atomic { reply == OK -> v = COMMIT; learn(COMMIT); break }
	:: (reply == REFUSED || reply == BELOW) && !maybe -> goto aborting	/* only we could write COMMIT, and now never will */
	:: reply == BELOW && maybe ->
#ifdef BELOW_IS_NO
		goto aborting
#else
		tell(DOUBT); goto over		/* an earlier try may have been written, carried out and forgotten */
#endif
	:: atomic { reply == CONFLICT || reply == REFUSED && maybe || reply == NONE ->
		maybe = maybe || reply == NONE;		/* nobody knows what a try without an answer has done */
		reply = NONE
	   };
		confirm(v);
		if
		:: v != NONE -> v = (v == ENDED -> COMMIT : v); break
		:: v == NONE -> wire = (wire == NONE -> ASKED : wire)
		:: v == NONE -> tell(DOUBT); goto over
		fi
	od;
#endif
	if
	:: v == ABORT -> goto aborting
	:: else
	fi;
	tell(COMMIT);
	carry_out_all(POINT, COMMIT, i, own, all, r);
	if
#ifdef FORGET_EARLY
	:: true -> end_record()
#else
	:: all -> end_record()
#endif
	:: else
	fi;
	goto over;
aborting:
	tell(ABORT);
	atomic { undo_point() };
	carry_out_all(POINT, ABORT, i, own, all, r);
over:	atomic { i = 0; r = NONE; v = NONE; all = false; own = false; maybe = false }
	}
#ifdef LIVE
	unless { dead }
#endif
}

/* sweep.py `_known`: no decision, and no name. Presumed abort, with the register as the fence. */
#define undecided(v, x, old) v = ABORT
#define past_grace true
#define row_seen false
#define due false
#include "sweep.pml"

/* ---- claims ----------------------------------------------------------------------------------------------------- */

#if N == 2
#define all(s) (mem[0] == s && mem[1] == s)
#else
#define all(s) (mem[0] == s && mem[1] == s && mem[2] == s)
#endif
#ifdef LIVE
/* I8, with servers that stay up in the end, and a recoverer that keeps sweeping. */
ltl no_orphan_0 { [] (mem[0] == PREPARED -> <> (mem[0] != PREPARED)) }
ltl no_orphan_1 { [] (mem[1] == PREPARED -> <> (mem[1] != PREPARED)) }
ltl no_open_record { [] (jdisk == COMMIT -> <> (jmem == ENDED || foreign)) }
/* I17: what a stranger does against the decision is told. */
ltl loud_commit { [] (foreign && decided_commit && some(GONE) -> <> alarmed) }
ltl loud_abort { [] (foreign && jdisk == ABORT && some(COMMITTED) -> <> alarmed) }
#endif
#ifdef WITNESS
/* Each of these is false, and Spin must find the run that it denies. */
ltl never_committed { [] !(told == COMMIT && jdisk == ENDED && all(COMMITTED)) }
ltl never_aborted { [] !(told == ABORT && jdisk == ABORT && all(GONE)) }
ltl never_finished_by_recovery { [] !(told == NONE && jdisk == ENDED) }
ltl never_in_doubt_then_committed { [] !(told == DOUBT && jdisk == ENDED) }
ltl never_in_doubt_then_aborted { [] !(told == DOUBT && jdisk == ABORT && all(GONE)) }
ltl never_prepared_after_the_abort { !(<> (jdisk == ABORT && mem[1] == WORK && <> (mem[1] == PREPARED && <> (mem[1] == GONE)))) }
ltl never_prepared_again { !(<> (jdisk == ABORT && mem[1] == GONE && disk[1] == PREPARED && <> (mem[1] == PREPARED && <> (disk[1] == GONE)))) }
ltl never_shown_and_forgotten { !(<> (jmem == COMMIT && jdisk == NONE && <> (jmem == NONE && <> (jmem == ABORT)))) }
ltl never_held { !(<> (grip[1] == HELD && jdisk == COMMIT && told == NONE && <> (mem[1] == COMMITTED && told == NONE))) }
ltl never_hidden { !(<> (grip[1] == HIDDEN && jdisk == COMMIT && <> (mem[1] == COMMITTED))) }
ltl never_rolled_back_in_vain { !(<> (grip[1] == HIDDEN && jdisk == ABORT && <> (shows(1) && <> (disk[1] == GONE)))) }
ltl never_forgotten { [] !(fmem && jmem == NONE && stood == COMMIT && all(COMMITTED)) }
ltl never_quarantined { [] !alarmed }
#endif
