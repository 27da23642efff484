-- Which migrations this file has had. Every release reads this first, and trusts it: its form never changes.
-- number: of the file. works_from: a coordinator must know at least this one to work on the tables as they are now.
-- steps_done: below `steps`, a migration has begun and not finished.

CREATE TABLE IF NOT EXISTS main.nodoubt_migrations (
    part TEXT NOT NULL CHECK (part IN ('journal', 'participant')),
    number INTEGER NOT NULL,
    works_from INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    steps_done INTEGER NOT NULL,
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (part, number)
) STRICT, WITHOUT ROWID;
