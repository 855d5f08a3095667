-- Ownership by hosts: one lease per host instead of one per account, a fence that knows who it was given to and in
-- which history, and what it takes to notice that this file is older than it was.
--
-- Times are microseconds since 1970 by the clock of the machine. Incarnations are 16 hexadecimal digits.

-- One row.
CREATE TABLE baton_cluster (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    -- Counts restores: commits that were confirmed may be missing since the generation before.
    generation INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    -- Random; names one unbroken line of commits. The file beside the database has it too, together with the highest
    -- number of commits that was answered in it: a database with another mark, or with fewer commits, was put back.
    mark TEXT CHECK (length(mark) = 16),
    commits INTEGER NOT NULL CHECK (commits >= 0),
    -- Goes up when accounts are handed over, released or wished elsewhere, and when a host ends: for those who watch.
    changes INTEGER NOT NULL CHECK (changes >= 0)
) STRICT;
INSERT INTO baton_cluster (id, generation, mark, commits, changes) VALUES (1, 1, NULL, 0, 0);

-- The roster. A row stays until its slot is used again.
CREATE TABLE baton_host (
    slot INTEGER NOT NULL PRIMARY KEY CHECK (slot BETWEEN 1 AND 1023),
    incarnation TEXT NOT NULL UNIQUE CHECK (length(incarnation) = 16),
    name TEXT NOT NULL CHECK (length(CAST(name AS BLOB)) BETWEEN 1 AND 64),
    address TEXT NOT NULL CHECK (length(CAST(address AS BLOB)) <= 255),
    zone TEXT NOT NULL CHECK (length(CAST(zone AS BLOB)) <= 255),
    version TEXT NOT NULL CHECK (length(CAST(version AS BLOB)) <= 255),
    state TEXT NOT NULL CHECK (state IN ('active', 'draining', 'released', 'dead')),
    capacity INTEGER NOT NULL CHECK (capacity BETWEEN 0 AND 4294967295),
    accounts INTEGER NOT NULL CHECK (accounts BETWEEN 0 AND 4294967295),
    -- Accounts that were handed over to it so far.
    gifts INTEGER NOT NULL CHECK (gifts >= 0),
    -- It keeps a lock on a file of its name beside the database: while it lives, nobody else can.
    locked INTEGER NOT NULL CHECK (locked IN (0, 1)),
    ttl INTEGER NOT NULL CHECK (ttl >= 0),
    expires_at INTEGER NOT NULL,
    -- Since when its renewals have come without a gap.
    good_since INTEGER NOT NULL
) STRICT;

-- What is wished for an account; no row: not to run.
CREATE TABLE baton_placement (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    run INTEGER NOT NULL CHECK (run IN (0, 1)),
    pin TEXT CHECK (length(CAST(pin AS BLOB)) BETWEEN 1 AND 64),
    not_before INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Keys of tenants, each wrapped by a key that is not here.
CREATE TABLE baton_vault (
    business_id TEXT NOT NULL REFERENCES baton_tenant (business_id),
    number INTEGER NOT NULL CHECK (number BETWEEN 1 AND 2147483647),
    wrapped BLOB NOT NULL CHECK (length(wrapped) BETWEEN 1 AND 4096),
    PRIMARY KEY (business_id, number)
) STRICT, WITHOUT ROWID;

-- The fence without leases. Whoever held an account by a lease is in no roster: the account is free, the next claim
-- raises the epoch, and a program of the version before is fenced.
CREATE TABLE baton_fence_2 (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch >= 0),
    -- Number of the last applied batch.
    applied INTEGER NOT NULL CHECK (applied >= 0),
    -- Goes up with every answer that a write has settled, also that of a batch sent again.
    commit_seq INTEGER NOT NULL CHECK (commit_seq >= 0),
    -- To whom the epoch was given; NULL if it was given up.
    holder TEXT CHECK (length(holder) = 16),
    -- The history in which the keys of the account are known not to have gone back.
    sealed_timeline INTEGER NOT NULL CHECK (sealed_timeline BETWEEN 0 AND 4294967295),
    sealed_generation INTEGER NOT NULL CHECK (sealed_generation BETWEEN 0 AND 4294967295),
    -- Moved to another database.
    retired INTEGER NOT NULL CHECK (retired IN (0, 1)),
    PRIMARY KEY (business_id, device_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
INSERT INTO baton_fence_2
    (business_id, device_id, epoch, applied, commit_seq, holder, sealed_timeline, sealed_generation, retired)
    SELECT business_id, device_id, epoch, applied, 0, holder, 1, 1, 0 FROM baton_fence;
DROP TABLE baton_fence;
ALTER TABLE baton_fence_2 RENAME TO baton_fence;
-- What a host holds, and who holds anything at all.
CREATE INDEX baton_fence_holder ON baton_fence (holder, business_id, device_id);
