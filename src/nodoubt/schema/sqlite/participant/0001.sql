-- What nodoubt keeps in each SQLite file that takes part. Written by nodoubt alone.
-- Older coordinators: there are none.

-- Who this file is, and whose, and the newest epoch which that journal has shown it, with its mark: one row.
CREATE TABLE IF NOT EXISTS main.nodoubt_identity (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    resource_id TEXT    NOT NULL,
    cluster     TEXT    NOT NULL,
    server      TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,
    mark        TEXT    NOT NULL
);

-- Proof that a branch committed, or ('abort') that it never can. alone: 1, the branch was ended in one phase, and its
-- receipt may go after the retention period; 0, it may go only after its end record.
CREATE TABLE IF NOT EXISTS main.nodoubt_receipts (
    attempt  TEXT    NOT NULL,
    branch   INTEGER NOT NULL,
    verdict  TEXT    NOT NULL CHECK (verdict IN ('commit', 'abort')),
    epoch    INTEGER NOT NULL,
    alone    INTEGER NOT NULL CHECK (alone IN (0, 1)),
    confirms INTEGER NOT NULL DEFAULT 0,
    at       REAL    NOT NULL,
    PRIMARY KEY (attempt, branch)
) WITHOUT ROWID;

-- Branches that are prepared: all that is needed to commit them is in `record` (its format: nodoubt.resources.sqlite.record).
-- Without a rowid: a page less to write by each prepare and each commit, while a record has less than 1000 bytes.
CREATE TABLE IF NOT EXISTS main.nodoubt_prepared (
    xid    TEXT    NOT NULL PRIMARY KEY,
    epoch  INTEGER NOT NULL,
    at     REAL    NOT NULL,
    record BLOB    NOT NULL
) WITHOUT ROWID;

-- Tables that a prepared branch has locked: X, it writes them; S, it relies on them. The guard triggers look here.
CREATE TABLE IF NOT EXISTS main.nodoubt_locks (
    tbl  TEXT NOT NULL,
    xid  TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('X', 'S')),
    PRIMARY KEY (tbl, xid)
) WITHOUT ROWID;

-- Idempotency keys. A row is committed with the effect, or with the record of a prepared branch: `xid` names the branch,
-- and while it is in nodoubt_prepared the key is in flight. payload: a digest of what was asked for. result: JSON, what a
-- repetition is told. kept_until: seconds since 1970.
CREATE TABLE IF NOT EXISTS main.nodoubt_keys (
    scope           TEXT    NOT NULL,
    idempotency_key TEXT    NOT NULL,
    payload         TEXT    NOT NULL,
    result          BLOB    NOT NULL,
    xid             TEXT    NOT NULL,
    confirms        INTEGER NOT NULL DEFAULT 0,
    kept_until      REAL    NOT NULL,
    PRIMARY KEY (scope, idempotency_key)
);
CREATE INDEX IF NOT EXISTS main.nodoubt_keys_kept_until ON nodoubt_keys (kept_until);
CREATE INDEX IF NOT EXISTS main.nodoubt_keys_xid ON nodoubt_keys (xid);
