-- Which migrations this database has had. Every release reads this first, and trusts it: its form never changes.
-- number: of the file. works_from: a coordinator must know at least this one to work on the tables as they are now.
-- steps_done: below `steps`, a migration has begun and not finished.

CREATE SCHEMA IF NOT EXISTS nodoubt;

CREATE TABLE IF NOT EXISTS nodoubt.migrations (
    part text COLLATE "C" NOT NULL CHECK (part IN ('journal', 'participant')),
    number integer NOT NULL,
    works_from integer NOT NULL,
    steps integer NOT NULL,
    steps_done integer NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (part, number)
);
