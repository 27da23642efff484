-- What nodoubt keeps in each PostgreSQL database that takes part.
-- Older coordinators: there are none.

-- One row: who this database is, and which journal it belongs to, for good; and the newest epoch that journal has shown it.
CREATE TABLE IF NOT EXISTS nodoubt.identity (
    single      boolean PRIMARY KEY DEFAULT true CHECK (single),
    resource_id text NOT NULL,
    cluster     text NOT NULL,
    server      text NOT NULL,
    epoch       bigint NOT NULL DEFAULT 0,
    mark        text NOT NULL DEFAULT '' -- of that epoch, as the journal gave it out
);

-- A branch writes its row in its own transaction, so a row that can be seen belongs to a branch that committed,
-- or ('abort') to the fence that keeps a branch from ever committing. NOT NULL everywhere is part of the proof:
-- a value that may not be written is written as NULL.
CREATE TABLE IF NOT EXISTS nodoubt.receipts (
    attempt  text COLLATE "C" NOT NULL,
    branch   integer NOT NULL,
    verdict  text NOT NULL CHECK (verdict IN ('commit', 'abort')),
    epoch    bigint NOT NULL,
    alone    boolean NOT NULL,
    confirms bigint NOT NULL DEFAULT 0,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (attempt, branch)
);

-- For the clean-up by age. A block range index costs a commit next to nothing.
CREATE INDEX IF NOT EXISTS receipts_at ON nodoubt.receipts USING brin (at) WITH (pages_per_range = 16);

-- Idempotency keys. A row is written in the transaction of the effect, so that it can be seen only if that committed.
-- payload: a digest of what was asked for. result: JSON, what a repetition is told. kept_until: seconds since 1970.
CREATE TABLE IF NOT EXISTS nodoubt.keys (
    scope           text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    payload         text NOT NULL,
    result          bytea NOT NULL,
    xid             text NOT NULL, -- of the branch that wrote it
    confirms        bigint NOT NULL DEFAULT 0,
    kept_until      double precision NOT NULL,
    PRIMARY KEY (scope, idempotency_key)
);
CREATE INDEX IF NOT EXISTS keys_kept_until ON nodoubt.keys (kept_until);
