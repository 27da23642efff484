"""The protocol: decides, does nothing.

`commit.py` is the two-phase-commit machine, `recovery.py` the table a sweep reads. The contract with whoever
drives the machine is etcd/raft's `Ready`: append the records (forced if `must_sync`) *before* running the
commands; commands of one `Ready` may run at the same time; state changes only on reported events.

Must not: read a clock, draw randomness, log, do I/O, or import anything of nodoubt but `errors` and `xid`.
"""
