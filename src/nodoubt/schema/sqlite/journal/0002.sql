-- Long jobs: who is at work on them, and how far they are, for everybody to see.
-- Older coordinators: work on.
-- Without it: all but jobs.

-- How far one is surely done is with its effects: the row in the keys of the database that `keeper` names has the last
-- word, and this one follows it. run: of this life of the name. claim: of who works on it, until held_until.
CREATE TABLE IF NOT EXISTS main.nodoubt_jobs (
    name TEXT NOT NULL PRIMARY KEY,
    run TEXT NOT NULL CHECK (length(run) = 32),
    keeper TEXT NOT NULL,
    state TEXT NOT NULL,
    done INTEGER NOT NULL,
    total INTEGER,
    checkpoint TEXT NOT NULL,
    note TEXT NOT NULL,
    worker TEXT NOT NULL,
    claim TEXT NOT NULL,
    held_until REAL NOT NULL,
    begun_at REAL NOT NULL,
    changed_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
