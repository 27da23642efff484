-- The journal of nodoubt on SQLite.
-- Older coordinators: there are none.

-- cluster: minted once. epoch: raised at each start of a coordinator. floor: the oldest attempt that may still be
-- decided; a clean-up raises it before it deletes anything. There is one writer at a time, so no row needs a lock.
CREATE TABLE IF NOT EXISTS main.nodoubt_journal (
    item TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL DEFAULT '',
    counter INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Which epochs there were, as far back as a registered resource may show one. The mark is random: in a journal that was
-- set back an epoch gets its number again, and another mark.
CREATE TABLE IF NOT EXISTS main.nodoubt_epochs (
    number INTEGER NOT NULL PRIMARY KEY,
    mark TEXT NOT NULL UNIQUE
) STRICT;

-- The register: write-once. A row is only ever inserted, confirmed, ended and, below the floor, deleted.
CREATE TABLE IF NOT EXISTS main.nodoubt_decisions (
    attempt TEXT NOT NULL PRIMARY KEY CHECK (length(attempt) = 32),
    verdict TEXT NOT NULL CHECK (verdict IN ('commit', 'abort')),
    mode TEXT NOT NULL,
    name TEXT NOT NULL,
    branches TEXT NOT NULL,
    point INTEGER,
    owner TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_at REAL NOT NULL,
    ended_at REAL,
    confirms INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- What recovery still has to finish: a handful of rows among millions that have ended.
CREATE INDEX IF NOT EXISTS main.nodoubt_decisions_open
    ON nodoubt_decisions (attempt) WHERE verdict = 'commit' AND ended_at IS NULL;

-- The directory of staged names.
CREATE TABLE IF NOT EXISTS main.nodoubt_names (
    name TEXT NOT NULL PRIMARY KEY,
    attempt TEXT NOT NULL UNIQUE CHECK (length(attempt) = 32),
    branches TEXT NOT NULL,
    last_branch INTEGER,
    deadline REAL NOT NULL,
    owner TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_at REAL NOT NULL,
    begin_by REAL NOT NULL,
    undecided TEXT -- the attempt, until its decision is written
) STRICT, WITHOUT ROWID;

-- What a sweep must look at although no resource may list a branch of it.
CREATE INDEX IF NOT EXISTS main.nodoubt_names_undecided
    ON nodoubt_names (undecided) WHERE undecided IS NOT NULL;

CREATE TABLE IF NOT EXISTS main.nodoubt_resources (
    resource_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    cluster TEXT NOT NULL,
    server TEXT NOT NULL,
    epoch INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS main.nodoubt_quarantine (
    attempt TEXT NOT NULL,
    branch INTEGER NOT NULL,
    resource TEXT NOT NULL,
    why TEXT NOT NULL,
    since REAL NOT NULL,
    cleared_by TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (attempt, branch)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS main.nodoubt_events (
    id INTEGER PRIMARY KEY,
    attempt TEXT NOT NULL,
    at REAL NOT NULL,
    what TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE INDEX IF NOT EXISTS main.nodoubt_events_attempt ON nodoubt_events (attempt, id);
