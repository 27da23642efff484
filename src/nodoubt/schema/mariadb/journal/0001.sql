-- The journal of nodoubt on MariaDB and MySQL.
-- Older coordinators: there are none.
--
-- Keys are VARBINARY: compared byte by byte, where every text collation would take 'a' and 'a ' for one name.

-- cluster: minted once. epoch: raised at each start of a coordinator. floor: the oldest attempt that may still be
-- decided; every decision locks this row in share mode, and a clean-up raises it before it deletes anything.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_journal (
    item VARBINARY(32) NOT NULL PRIMARY KEY,
    value VARBINARY(64) NOT NULL DEFAULT x'',
    counter BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Which epochs there were, as far back as a registered resource may show one. The mark is random: in a journal that was
-- set back an epoch gets its number again, and another mark.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_epochs (
    number BIGINT NOT NULL PRIMARY KEY,
    mark VARBINARY(16) NOT NULL,
    UNIQUE INDEX nodoubt_epochs_mark (mark)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The register: write-once. A row is only ever inserted, confirmed, ended and, below the floor, deleted.
-- The CHECK holds even where a lax sql_mode would turn a NULL attempt into an empty one. open_commit is what recovery
-- still has to finish: a handful of rows among millions that have ended.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_decisions (
    attempt VARBINARY(32) NOT NULL PRIMARY KEY,
    verdict VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    mode VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    name VARBINARY(800) NOT NULL,
    branches LONGTEXT NOT NULL,
    point INT NULL,
    owner TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_at DOUBLE NOT NULL,
    ended_at DOUBLE NULL,
    confirms BIGINT NOT NULL DEFAULT 0,
    open_commit VARBINARY(32) AS (IF(verdict = 'commit' AND ended_at IS NULL, attempt, NULL)) VIRTUAL,
    INDEX nodoubt_decisions_open (open_commit),
    CHECK (length(attempt) = 32),
    CHECK (verdict IN ('commit', 'abort'))
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The directory of staged names.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_names (
    name VARBINARY(800) NOT NULL PRIMARY KEY,
    attempt VARBINARY(32) NOT NULL,
    branches LONGTEXT NOT NULL,
    last_branch INT NULL,
    deadline DOUBLE NOT NULL,
    owner TEXT NOT NULL,
    metadata LONGTEXT NOT NULL,
    created_at DOUBLE NOT NULL,
    begin_by DOUBLE NOT NULL,
    confirmations LONGTEXT NOT NULL, -- who must confirm: what they say is in the table of that name
    calls INT NOT NULL, -- how many steps have been called
    undecided VARBINARY(32) NULL, -- the attempt, until it is decided; of a COMMIT, at the latest until that has ended
    UNIQUE INDEX nodoubt_names_attempt (attempt),
    INDEX nodoubt_names_undecided (undecided),
    CHECK (length(attempt) = 32)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What those who must confirm a staged attempt have said. Written once, under the lock of the name's row.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_confirmations (
    attempt VARBINARY(32) NOT NULL,
    who VARBINARY(800) NOT NULL,
    answer VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'asked',
    why TEXT NOT NULL,
    at DOUBLE NOT NULL DEFAULT 0,
    PRIMARY KEY (attempt, who)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Steps that were called outside. unfinished: the attempt, until nobody has anything left to do for the call.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_calls (
    attempt VARBINARY(32) NOT NULL,
    number INT NOT NULL,
    call_key VARBINARY(800) NOT NULL,
    step TEXT NOT NULL,
    compensation TEXT NOT NULL,
    arguments LONGTEXT NOT NULL,
    state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    result LONGTEXT NOT NULL,
    error TEXT NOT NULL,
    tries INT NOT NULL,
    held_until DOUBLE NOT NULL,
    claim VARBINARY(64) NOT NULL,
    worker TEXT NOT NULL,
    begun_at DOUBLE NOT NULL,
    changed_at DOUBLE NOT NULL,
    version BIGINT NOT NULL,
    unfinished VARBINARY(32) NULL,
    PRIMARY KEY (attempt, number),
    UNIQUE INDEX nodoubt_calls_key (attempt, call_key),
    INDEX nodoubt_calls_unfinished (unfinished, state),
    CHECK (length(attempt) = 32)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS {database}.nodoubt_resources (
    resource_id VARBINARY(255) NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    cluster TEXT NOT NULL,
    server TEXT NOT NULL,
    epoch BIGINT NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS {database}.nodoubt_quarantine (
    attempt VARBINARY(255) NOT NULL,
    branch INT NOT NULL,
    resource TEXT NOT NULL,
    why TEXT NOT NULL,
    since DOUBLE NOT NULL,
    cleared_by VARCHAR(255) NOT NULL DEFAULT x'',
    PRIMARY KEY (attempt, branch)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS {database}.nodoubt_events (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    attempt VARBINARY(255) NOT NULL,
    at DOUBLE NOT NULL,
    what TEXT NOT NULL,
    detail LONGTEXT NOT NULL,
    INDEX nodoubt_events_attempt (attempt, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
