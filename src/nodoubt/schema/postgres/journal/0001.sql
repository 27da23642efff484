-- The journal of nodoubt on PostgreSQL.
-- Older coordinators: there are none.

-- cluster: minted once. epoch: raised at each start of a coordinator. floor: the oldest attempt that may still be
-- decided; every decision holds it by a lock on this table, and a clean-up raises it before it deletes anything.
CREATE TABLE IF NOT EXISTS nodoubt.journal (
    item text COLLATE "C" PRIMARY KEY,
    value text COLLATE "C" NOT NULL DEFAULT '',
    counter bigint NOT NULL DEFAULT 0
);

-- Which epochs there were, as far back as a registered resource may show one. The mark is random: in a journal that was
-- set back an epoch gets its number again, and another mark.
CREATE TABLE IF NOT EXISTS nodoubt.epochs (
    number bigint PRIMARY KEY,
    mark text COLLATE "C" NOT NULL UNIQUE
);

-- The register: write-once. A row is only ever inserted, confirmed, ended and, below the floor, deleted.
-- Room on each page keeps the confirming UPDATE from touching an index.
CREATE TABLE IF NOT EXISTS nodoubt.decisions (
    attempt text COLLATE "C" PRIMARY KEY CHECK (length(attempt) = 32),
    verdict text NOT NULL CHECK (verdict IN ('commit', 'abort')),
    mode text NOT NULL,
    name text NOT NULL,
    branches text NOT NULL,
    point integer,
    owner text NOT NULL,
    reason text NOT NULL,
    decided_at double precision NOT NULL,
    ended_at double precision,
    confirms bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 80);

-- What recovery still has to finish: a handful of rows among millions that have ended.
CREATE INDEX IF NOT EXISTS decisions_open ON nodoubt.decisions (attempt) WHERE verdict = 'commit' AND ended_at IS NULL;

-- The directory of staged names.
CREATE TABLE IF NOT EXISTS nodoubt.names (
    name text COLLATE "C" PRIMARY KEY,
    attempt text COLLATE "C" NOT NULL UNIQUE CHECK (length(attempt) = 32),
    branches text NOT NULL,
    last_branch integer,
    deadline double precision NOT NULL,
    owner text NOT NULL,
    metadata text NOT NULL,
    created_at double precision NOT NULL,
    begin_by double precision NOT NULL,
    confirmations text NOT NULL, -- who must confirm: what they say is in the table of that name
    calls integer NOT NULL, -- how many steps have been called
    undecided text COLLATE "C" -- the attempt, until it is decided; of a COMMIT, at the latest until that has ended
);

-- What a sweep must look at although no resource may list a branch of it.
CREATE INDEX IF NOT EXISTS names_undecided ON nodoubt.names (undecided) WHERE undecided IS NOT NULL;

-- What those who must confirm a staged attempt have said. Written once, under the lock of the name's row.
CREATE TABLE IF NOT EXISTS nodoubt.confirmations (
    attempt text COLLATE "C" NOT NULL,
    who text COLLATE "C" NOT NULL,
    answer text NOT NULL DEFAULT 'asked',
    why text NOT NULL DEFAULT '',
    at double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (attempt, who)
);

-- Steps that were called outside. unfinished: the attempt, until nobody has anything left to do for the call.
CREATE TABLE IF NOT EXISTS nodoubt.calls (
    attempt text COLLATE "C" NOT NULL CHECK (length(attempt) = 32),
    number integer NOT NULL,
    call_key text COLLATE "C" NOT NULL,
    step text NOT NULL,
    compensation text NOT NULL,
    arguments text NOT NULL,
    state text NOT NULL,
    result text NOT NULL,
    error text NOT NULL,
    tries integer NOT NULL,
    held_until double precision NOT NULL,
    claim text NOT NULL,
    worker text NOT NULL,
    begun_at double precision NOT NULL,
    changed_at double precision NOT NULL,
    version bigint NOT NULL,
    unfinished text COLLATE "C",
    PRIMARY KEY (attempt, number),
    UNIQUE (attempt, call_key)
);

CREATE INDEX IF NOT EXISTS calls_unfinished ON nodoubt.calls (unfinished, state) WHERE unfinished IS NOT NULL;

CREATE TABLE IF NOT EXISTS nodoubt.resources (
    resource_id text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    cluster text NOT NULL,
    server text NOT NULL,
    epoch bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS nodoubt.quarantine (
    attempt text COLLATE "C" NOT NULL,
    branch integer NOT NULL,
    resource text NOT NULL,
    why text NOT NULL,
    since double precision NOT NULL,
    cleared_by text NOT NULL DEFAULT '',
    PRIMARY KEY (attempt, branch)
);

CREATE TABLE IF NOT EXISTS nodoubt.events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    attempt text COLLATE "C" NOT NULL,
    at double precision NOT NULL,
    what text NOT NULL,
    detail text NOT NULL
);

CREATE INDEX IF NOT EXISTS events_attempt ON nodoubt.events (attempt, id);
