-- What nodoubt keeps in each MariaDB or MySQL database that takes part.
-- Older coordinators: there are none.

-- Who this database is, to whose journal it belongs, and the newest epoch that journal has shown it: its
-- number, and the mark under which it was given out.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_identity (
    id TINYINT NOT NULL PRIMARY KEY,
    resource_id CHAR(32) NOT NULL,
    cluster CHAR(16) NOT NULL,
    server VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    epoch BIGINT NOT NULL,
    mark VARCHAR(16) NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- A row that a branch writes in its own transaction: there only if the branch committed. An 'abort' row is a fence: it
-- takes the place, so that a commit in flight can no longer happen. `alone`: the row is the only record of the commit
-- (one phase), so that it is kept for the retention period. `at`: seconds since 1970, by the server's clock.
-- Attempts rise with time, so rows are added at the end of the key and removed from its beginning.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_receipts (
    attempt CHAR(32) NOT NULL,
    branch SMALLINT UNSIGNED NOT NULL,
    verdict VARCHAR(6) NOT NULL,
    alone TINYINT NOT NULL,
    epoch BIGINT NOT NULL,
    confirms BIGINT NOT NULL,
    at DOUBLE NOT NULL,
    PRIMARY KEY (attempt, branch),
    KEY nodoubt_epoch (epoch)
) ENGINE=InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Idempotency keys. A row is inserted in the transaction of the effect, before its work, so that nobody else can have
-- the key meanwhile; it can be seen only if that committed. payload: a digest of what was asked for. result: JSON,
-- what a repetition is told. xid: of the branch that wrote it. kept_until: seconds since 1970.
CREATE TABLE IF NOT EXISTS {database}.nodoubt_keys (
    scope VARBINARY(1020) NOT NULL,
    idempotency_key VARBINARY(1020) NOT NULL,
    payload CHAR(64) NOT NULL,
    result MEDIUMBLOB NOT NULL,
    xid VARCHAR(64) NOT NULL,
    confirms BIGINT NOT NULL,
    kept_until DOUBLE NOT NULL,
    PRIMARY KEY (scope, idempotency_key),
    KEY nodoubt_keys_kept_until (kept_until)
) ENGINE=InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;
