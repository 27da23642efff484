-- Long jobs: who is at work on them, and how far they are, for everybody to see.
-- Older coordinators: work on.
-- Without it: all but jobs.

-- How far one is surely done is with its effects: the row in the keys of the database that `keeper` names has the last
-- word, and this one follows it. run: of this life of the name. claim: of who works on it, until held_until.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_jobs (
    name VARBINARY(800) NOT NULL PRIMARY KEY,
    run VARBINARY(32) NOT NULL,
    keeper VARBINARY(255) NOT NULL,
    state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    done BIGINT NOT NULL,
    total BIGINT NULL,
    checkpoint LONGTEXT NOT NULL,
    note TEXT NOT NULL,
    worker TEXT NOT NULL,
    claim VARBINARY(32) NOT NULL,
    held_until DOUBLE NOT NULL,
    begun_at DOUBLE NOT NULL,
    changed_at DOUBLE NOT NULL,
    CHECK (length(run) = 32)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
