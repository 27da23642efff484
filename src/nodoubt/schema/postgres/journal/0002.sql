-- Long jobs: who is at work on them, and how far they are, for everybody to see.
-- Older coordinators: work on.
-- Without it: all but jobs.

-- How far one is surely done is with its effects: the row in the keys of the database that `keeper` names has the last
-- word, and this one follows it. run: of this life of the name. claim: of who works on it, until held_until.
CREATE TABLE IF NOT EXISTS nodoubt.jobs (
    name text COLLATE "C" PRIMARY KEY,
    run text COLLATE "C" NOT NULL CHECK (length(run) = 32),
    keeper text COLLATE "C" NOT NULL,
    state text NOT NULL,
    done bigint NOT NULL,
    total bigint,
    checkpoint text NOT NULL,
    note text NOT NULL,
    worker text NOT NULL,
    claim text COLLATE "C" NOT NULL,
    held_until double precision NOT NULL,
    begun_at double precision NOT NULL,
    changed_at double precision NOT NULL
);
