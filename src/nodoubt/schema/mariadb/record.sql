-- Which migrations this database has had. Every release reads this first, and trusts it: its form never changes.
-- number: of the file. works_from: a coordinator must know at least this one to work on the tables as they are now.
-- steps_done: statements that are done. Below `steps`, a migration has begun and not finished: each CREATE and ALTER
-- commits by itself here.

CREATE TABLE IF NOT EXISTS {database}.nodoubt_migrations (
    part VARCHAR(16) NOT NULL,
    number INT NOT NULL,
    works_from INT NOT NULL,
    steps INT NOT NULL,
    steps_done INT NOT NULL,
    at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (part, number),
    CHECK (part IN ('journal', 'participant'))
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;
