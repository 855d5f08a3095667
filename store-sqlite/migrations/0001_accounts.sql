-- The accounts of an installation: one set of typed tables for all tenants, every key starting with the tenant.
--
-- A row is a typed key, an opaque record (version byte and protobuf, see baton-core) and the time of the batch that
-- wrote it. A JID is four columns, so that the order of users is the order of the index. Tables of small rows are
-- kept in their primary key; tables of large records are not, as records would crowd the keys out of its inner pages.

CREATE TABLE baton_tenant (
    business_id TEXT NOT NULL PRIMARY KEY CHECK (length(CAST(business_id AS BLOB)) BETWEEN 1 AND 64),
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row. Numbers of accounts are never given twice, even when the account with the highest one is deleted:
-- a process that still believes to own it must not meet another account under its number.
CREATE TABLE baton_numbers (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    next_device_id INTEGER NOT NULL CHECK (next_device_id >= 1)
) STRICT;
INSERT INTO baton_numbers (id, next_device_id) VALUES (1, 1);

-- An account. `record` is NULL until its engine writes it for the first time; `jid` and `lid` follow from it.
CREATE TABLE baton_device (
    business_id TEXT NOT NULL REFERENCES baton_tenant (business_id),
    device_id INTEGER NOT NULL CHECK (device_id >= 1),
    name TEXT NOT NULL CHECK (length(CAST(name AS BLOB)) BETWEEN 1 AND 64),
    jid TEXT,
    lid TEXT,
    record BLOB CHECK (length(record) <= 16777216),
    written_at INTEGER,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id),
    UNIQUE (business_id, name),
    UNIQUE (device_id)
) STRICT;

-- Who may write an account, and how far its history has come. Every commit updates this row where the epoch is its own.
CREATE TABLE baton_fence (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch >= 0),
    -- Number of the last applied batch.
    applied INTEGER NOT NULL CHECK (applied >= 0),
    -- Process start that holds the lease, as 16 hexadecimal digits; NULL if nobody does.
    holder TEXT CHECK (length(holder) = 16),
    -- Unix milliseconds by the clock of the machine, and how long the lease was given for.
    expires_at INTEGER,
    lease_ms INTEGER CHECK (lease_ms >= 0),
    PRIMARY KEY (business_id, device_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE,
    CHECK ((holder IS NULL) = (expires_at IS NULL) AND (holder IS NULL) = (lease_ms IS NULL))
) STRICT, WITHOUT ROWID;

-- Numbers that only go up. One row.
CREATE TABLE baton_counters (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Identity keys of other devices.
CREATE TABLE baton_identity_keys (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    peer_user TEXT NOT NULL CHECK (length(CAST(peer_user AS BLOB)) <= 255),
    peer_server TEXT NOT NULL CHECK (length(CAST(peer_server AS BLOB)) BETWEEN 1 AND 32),
    peer_device INTEGER NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator INTEGER NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Signal sessions.
CREATE TABLE baton_sessions (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    peer_user TEXT NOT NULL CHECK (length(CAST(peer_user AS BLOB)) <= 255),
    peer_server TEXT NOT NULL CHECK (length(CAST(peer_server AS BLOB)) BETWEEN 1 AND 32),
    peer_device INTEGER NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator INTEGER NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT;

-- Private halves of one-time pre-keys.
CREATE TABLE baton_pre_keys (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    pre_key_id INTEGER NOT NULL CHECK (pre_key_id BETWEEN 1 AND 16777215),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, pre_key_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Sender keys of groups.
CREATE TABLE baton_sender_keys (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    group_user TEXT NOT NULL CHECK (length(CAST(group_user AS BLOB)) <= 255),
    group_server TEXT NOT NULL CHECK (length(CAST(group_server AS BLOB)) BETWEEN 1 AND 32),
    group_device INTEGER NOT NULL CHECK (group_device BETWEEN 0 AND 65535),
    group_integrator INTEGER NOT NULL CHECK (group_integrator BETWEEN 0 AND 65535),
    sender_user TEXT NOT NULL CHECK (length(CAST(sender_user AS BLOB)) <= 255),
    sender_server TEXT NOT NULL CHECK (length(CAST(sender_server AS BLOB)) BETWEEN 1 AND 32),
    sender_device INTEGER NOT NULL CHECK (sender_device BETWEEN 0 AND 65535),
    sender_integrator INTEGER NOT NULL CHECK (sender_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (
        business_id, device_id,
        group_user, group_server, group_device, group_integrator,
        sender_user, sender_server, sender_device, sender_integrator
    ),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT;

-- Keys that the phone shares for app state.
CREATE TABLE baton_app_state_sync_keys (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    key_id BLOB NOT NULL CHECK (length(key_id) BETWEEN 1 AND 64),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, key_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Version and LTHash of a collection.
CREATE TABLE baton_app_state_version (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    collection TEXT NOT NULL CHECK (length(CAST(collection AS BLOB)) BETWEEN 1 AND 255),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, collection),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Value MACs of a collection, by index MAC.
CREATE TABLE baton_app_state_mutation_macs (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    collection TEXT NOT NULL CHECK (length(CAST(collection AS BLOB)) BETWEEN 1 AND 255),
    index_mac BLOB NOT NULL CHECK (length(index_mac) = 32),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, collection, index_mac),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Contacts.
CREATE TABLE baton_contacts (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    peer_user TEXT NOT NULL CHECK (length(CAST(peer_user AS BLOB)) <= 255),
    peer_server TEXT NOT NULL CHECK (length(CAST(peer_server AS BLOB)) BETWEEN 1 AND 32),
    peer_device INTEGER NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator INTEGER NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Phone numbers known only in shortened form.
CREATE TABLE baton_redacted_phones (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    peer_user TEXT NOT NULL CHECK (length(CAST(peer_user AS BLOB)) <= 255),
    peer_server TEXT NOT NULL CHECK (length(CAST(peer_server AS BLOB)) BETWEEN 1 AND 32),
    peer_device INTEGER NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator INTEGER NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Mute, pin, archive.
CREATE TABLE baton_chat_settings (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    chat_user TEXT NOT NULL CHECK (length(CAST(chat_user AS BLOB)) <= 255),
    chat_server TEXT NOT NULL CHECK (length(CAST(chat_server AS BLOB)) BETWEEN 1 AND 32),
    chat_device INTEGER NOT NULL CHECK (chat_device BETWEEN 0 AND 65535),
    chat_integrator INTEGER NOT NULL CHECK (chat_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, chat_user, chat_server, chat_device, chat_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Secrets of messages that votes, reactions and edits refer to. Leave by age.
CREATE TABLE baton_message_secrets (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    chat_user TEXT NOT NULL CHECK (length(CAST(chat_user AS BLOB)) <= 255),
    chat_server TEXT NOT NULL CHECK (length(CAST(chat_server AS BLOB)) BETWEEN 1 AND 32),
    chat_device INTEGER NOT NULL CHECK (chat_device BETWEEN 0 AND 65535),
    chat_integrator INTEGER NOT NULL CHECK (chat_integrator BETWEEN 0 AND 65535),
    sender_user TEXT NOT NULL CHECK (length(CAST(sender_user AS BLOB)) <= 255),
    sender_server TEXT NOT NULL CHECK (length(CAST(sender_server AS BLOB)) BETWEEN 1 AND 32),
    sender_device INTEGER NOT NULL CHECK (sender_device BETWEEN 0 AND 65535),
    sender_integrator INTEGER NOT NULL CHECK (sender_integrator BETWEEN 0 AND 65535),
    message_id TEXT NOT NULL CHECK (length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (
        business_id, device_id,
        chat_user, chat_server, chat_device, chat_integrator,
        sender_user, sender_server, sender_device, sender_integrator,
        message_id
    ),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX baton_message_secrets_age ON baton_message_secrets (business_id, device_id, written_at);

-- Privacy tokens of contacts.
CREATE TABLE baton_privacy_tokens (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    peer_user TEXT NOT NULL CHECK (length(CAST(peer_user AS BLOB)) <= 255),
    peer_server TEXT NOT NULL CHECK (length(CAST(peer_server AS BLOB)) BETWEEN 1 AND 32),
    peer_device INTEGER NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator INTEGER NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Phone number to LID.
CREATE TABLE baton_lid_map (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    user_part TEXT NOT NULL CHECK (length(CAST(user_part AS BLOB)) BETWEEN 1 AND 255),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, user_part),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Inbox: decrypted events until acknowledged.
CREATE TABLE baton_event_buffer (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    seq INTEGER NOT NULL CHECK (seq >= 1),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, seq),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT;

-- Marks of messages that were decrypted once. Leave by age.
CREATE TABLE baton_seen (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, hash),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX baton_seen_age ON baton_seen (business_id, device_id, written_at);

-- Sends that the service has not acknowledged yet.
CREATE TABLE baton_outbox (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    message_id TEXT NOT NULL CHECK (length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, message_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT;

-- Sends that the service has, kept to answer retry receipts. Leave by age.
CREATE TABLE baton_sent (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    message_id TEXT NOT NULL CHECK (length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, message_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT;
CREATE INDEX baton_sent_age ON baton_sent (business_id, device_id, written_at);

-- Device lists of users.
CREATE TABLE baton_device_lists (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    peer_user TEXT NOT NULL CHECK (length(CAST(peer_user AS BLOB)) <= 255),
    peer_server TEXT NOT NULL CHECK (length(CAST(peer_server AS BLOB)) BETWEEN 1 AND 32),
    peer_device INTEGER NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator INTEGER NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT;

-- Requests to send, left by processes that do not own the account.
CREATE TABLE baton_mailbox (
    business_id TEXT NOT NULL,
    device_id INTEGER NOT NULL,
    message_id TEXT NOT NULL CHECK (length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255),
    record BLOB NOT NULL CHECK (length(record) <= 16777216),
    written_at INTEGER NOT NULL,
    PRIMARY KEY (business_id, device_id, message_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) STRICT;
