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
    confirmations TEXT NOT NULL, -- who must confirm: what they say is in the table of that name
    calls INTEGER NOT NULL, -- how many steps have been called
    undecided TEXT -- the attempt, until it is decided; of a COMMIT, at the latest until that has ended
) STRICT, WITHOUT ROWID;

-- What a sweep must look at although no resource may list a branch of it.
CREATE INDEX IF NOT EXISTS main.nodoubt_names_undecided
    ON nodoubt_names (undecided) WHERE undecided IS NOT NULL;

-- What those who must confirm a staged attempt have said. Written once.
CREATE TABLE IF NOT EXISTS main.nodoubt_confirmations (
    attempt TEXT NOT NULL,
    who TEXT NOT NULL,
    answer TEXT NOT NULL DEFAULT 'asked',
    why TEXT NOT NULL DEFAULT '',
    at REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (attempt, who)
) STRICT, WITHOUT ROWID;

-- Steps that were called outside. unfinished: the attempt, until nobody has anything left to do for the call.
CREATE TABLE IF NOT EXISTS main.nodoubt_calls (
    attempt TEXT NOT NULL CHECK (length(attempt) = 32),
    number INTEGER NOT NULL,
    call_key TEXT NOT NULL,
    step TEXT NOT NULL,
    compensation TEXT NOT NULL,
    arguments TEXT NOT NULL,
    state TEXT NOT NULL,
    result TEXT NOT NULL,
    error TEXT NOT NULL,
    tries INTEGER NOT NULL,
    held_until REAL NOT NULL,
    claim TEXT NOT NULL,
    worker TEXT NOT NULL,
    begun_at REAL NOT NULL,
    changed_at REAL NOT NULL,
    version INTEGER NOT NULL,
    unfinished TEXT,
    PRIMARY KEY (attempt, number),
    UNIQUE (attempt, call_key)
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS main.nodoubt_calls_unfinished
    ON nodoubt_calls (unfinished, state) WHERE unfinished IS NOT NULL;

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
