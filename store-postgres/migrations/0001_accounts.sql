-- The accounts of an installation: one set of typed tables for all tenants, every key starting with the tenant.
--
-- A row is a typed key, an opaque record (version byte and protobuf, see baton-core) and the time of the batch that
-- wrote it. A JID is four columns, so that the order of users is the order of the index; text is compared by its
-- bytes (COLLATE "C"), as the rest of the program compares it, whatever the locale of the database.

CREATE TABLE baton_tenant (
    business_id text COLLATE "C" NOT NULL PRIMARY KEY CHECK (business_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Numbers of accounts are never given twice, even when the account with the highest one is deleted: a process that
-- still believes to own it must not meet another account under its number.
CREATE SEQUENCE baton_device_number AS bigint MINVALUE 1 NO CYCLE;

-- An account. `record` is NULL until its engine writes it for the first time; `jid` and `lid` follow from it.
CREATE TABLE baton_device (
    business_id text COLLATE "C" NOT NULL REFERENCES baton_tenant (business_id),
    device_id bigint NOT NULL DEFAULT nextval('baton_device_number') CHECK (device_id >= 1),
    name text COLLATE "C" NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 64),
    jid text COLLATE "C",
    lid text COLLATE "C",
    record bytea CHECK (octet_length(record) <= 16777216),
    written_at bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (business_id, device_id),
    UNIQUE (business_id, name),
    UNIQUE (device_id)
);
ALTER SEQUENCE baton_device_number OWNED BY baton_device.device_id;

-- Who may write an account, and how far its history has come. Every commit updates this row where the epoch is its
-- own, so half of each page is kept free for the next version of its rows, and no index has to follow.
CREATE TABLE baton_fence (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    -- Number of the last applied batch.
    applied bigint NOT NULL DEFAULT 0 CHECK (applied >= 0),
    -- Process start that holds the lease, its 64 bits as a signed number; NULL if nobody does.
    holder bigint,
    -- By the clock of the database, and how many microseconds the lease was given for.
    expires_at timestamptz,
    lease_us bigint CHECK (lease_us >= 0),
    PRIMARY KEY (business_id, device_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE,
    CHECK ((holder IS NULL) = (expires_at IS NULL) AND (holder IS NULL) = (lease_us IS NULL))
) WITH (fillfactor = 50);

-- Numbers that only go up. One row.
CREATE TABLE baton_counters (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Identity keys of other devices.
CREATE TABLE baton_identity_keys (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    peer_user text COLLATE "C" NOT NULL CHECK (octet_length(peer_user) <= 255),
    peer_server text COLLATE "C" NOT NULL CHECK (octet_length(peer_server) BETWEEN 1 AND 32),
    peer_device integer NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator integer NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Signal sessions. Those of 2 to 8 kB stay in their row instead of becoming rows of a second table.
CREATE TABLE baton_sessions (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    peer_user text COLLATE "C" NOT NULL CHECK (octet_length(peer_user) <= 255),
    peer_server text COLLATE "C" NOT NULL CHECK (octet_length(peer_server) BETWEEN 1 AND 32),
    peer_device integer NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator integer NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);

-- Private halves of one-time pre-keys.
CREATE TABLE baton_pre_keys (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    pre_key_id integer NOT NULL CHECK (pre_key_id BETWEEN 1 AND 16777215),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, pre_key_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Sender keys of groups.
CREATE TABLE baton_sender_keys (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    group_user text COLLATE "C" NOT NULL CHECK (octet_length(group_user) <= 255),
    group_server text COLLATE "C" NOT NULL CHECK (octet_length(group_server) BETWEEN 1 AND 32),
    group_device integer NOT NULL CHECK (group_device BETWEEN 0 AND 65535),
    group_integrator integer NOT NULL CHECK (group_integrator BETWEEN 0 AND 65535),
    sender_user text COLLATE "C" NOT NULL CHECK (octet_length(sender_user) <= 255),
    sender_server text COLLATE "C" NOT NULL CHECK (octet_length(sender_server) BETWEEN 1 AND 32),
    sender_device integer NOT NULL CHECK (sender_device BETWEEN 0 AND 65535),
    sender_integrator integer NOT NULL CHECK (sender_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (
        business_id, device_id,
        group_user, group_server, group_device, group_integrator,
        sender_user, sender_server, sender_device, sender_integrator
    ),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);

-- Keys that the phone shares for app state.
CREATE TABLE baton_app_state_sync_keys (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    key_id bytea NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 64),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, key_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Version and LTHash of a collection.
CREATE TABLE baton_app_state_version (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    collection text COLLATE "C" NOT NULL CHECK (octet_length(collection) BETWEEN 1 AND 255),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, collection),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Value MACs of a collection, by index MAC.
CREATE TABLE baton_app_state_mutation_macs (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    collection text COLLATE "C" NOT NULL CHECK (octet_length(collection) BETWEEN 1 AND 255),
    index_mac bytea NOT NULL CHECK (octet_length(index_mac) = 32),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, collection, index_mac),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Contacts.
CREATE TABLE baton_contacts (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    peer_user text COLLATE "C" NOT NULL CHECK (octet_length(peer_user) <= 255),
    peer_server text COLLATE "C" NOT NULL CHECK (octet_length(peer_server) BETWEEN 1 AND 32),
    peer_device integer NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator integer NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Phone numbers known only in shortened form.
CREATE TABLE baton_redacted_phones (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    peer_user text COLLATE "C" NOT NULL CHECK (octet_length(peer_user) <= 255),
    peer_server text COLLATE "C" NOT NULL CHECK (octet_length(peer_server) BETWEEN 1 AND 32),
    peer_device integer NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator integer NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Mute, pin, archive.
CREATE TABLE baton_chat_settings (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    chat_user text COLLATE "C" NOT NULL CHECK (octet_length(chat_user) <= 255),
    chat_server text COLLATE "C" NOT NULL CHECK (octet_length(chat_server) BETWEEN 1 AND 32),
    chat_device integer NOT NULL CHECK (chat_device BETWEEN 0 AND 65535),
    chat_integrator integer NOT NULL CHECK (chat_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, chat_user, chat_server, chat_device, chat_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Secrets of messages that votes, reactions and edits refer to. Leave by age.
CREATE TABLE baton_message_secrets (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    chat_user text COLLATE "C" NOT NULL CHECK (octet_length(chat_user) <= 255),
    chat_server text COLLATE "C" NOT NULL CHECK (octet_length(chat_server) BETWEEN 1 AND 32),
    chat_device integer NOT NULL CHECK (chat_device BETWEEN 0 AND 65535),
    chat_integrator integer NOT NULL CHECK (chat_integrator BETWEEN 0 AND 65535),
    sender_user text COLLATE "C" NOT NULL CHECK (octet_length(sender_user) <= 255),
    sender_server text COLLATE "C" NOT NULL CHECK (octet_length(sender_server) BETWEEN 1 AND 32),
    sender_device integer NOT NULL CHECK (sender_device BETWEEN 0 AND 65535),
    sender_integrator integer NOT NULL CHECK (sender_integrator BETWEEN 0 AND 65535),
    message_id text COLLATE "C" NOT NULL CHECK (octet_length(message_id) BETWEEN 1 AND 255),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (
        business_id, device_id,
        chat_user, chat_server, chat_device, chat_integrator,
        sender_user, sender_server, sender_device, sender_integrator,
        message_id
    ),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);
CREATE INDEX baton_message_secrets_age ON baton_message_secrets (business_id, device_id, written_at);

-- Privacy tokens of contacts.
CREATE TABLE baton_privacy_tokens (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    peer_user text COLLATE "C" NOT NULL CHECK (octet_length(peer_user) <= 255),
    peer_server text COLLATE "C" NOT NULL CHECK (octet_length(peer_server) BETWEEN 1 AND 32),
    peer_device integer NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator integer NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Phone number to LID.
CREATE TABLE baton_lid_map (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    user_part text COLLATE "C" NOT NULL CHECK (octet_length(user_part) BETWEEN 1 AND 255),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, user_part),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Inbox: decrypted events until acknowledged.
CREATE TABLE baton_event_buffer (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    seq bigint NOT NULL CHECK (seq >= 1),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, seq),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Marks of messages that were decrypted once. Leave by age.
CREATE TABLE baton_seen (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, hash),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);
CREATE INDEX baton_seen_age ON baton_seen (business_id, device_id, written_at);

-- Sends that the service has not acknowledged yet.
CREATE TABLE baton_outbox (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    message_id text COLLATE "C" NOT NULL CHECK (octet_length(message_id) BETWEEN 1 AND 255),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, message_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Sends that the service has, kept to answer retry receipts. Leave by age.
CREATE TABLE baton_sent (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    message_id text COLLATE "C" NOT NULL CHECK (octet_length(message_id) BETWEEN 1 AND 255),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, message_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);
CREATE INDEX baton_sent_age ON baton_sent (business_id, device_id, written_at);

-- Device lists of users.
CREATE TABLE baton_device_lists (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    peer_user text COLLATE "C" NOT NULL CHECK (octet_length(peer_user) <= 255),
    peer_server text COLLATE "C" NOT NULL CHECK (octet_length(peer_server) BETWEEN 1 AND 32),
    peer_device integer NOT NULL CHECK (peer_device BETWEEN 0 AND 65535),
    peer_integrator integer NOT NULL CHECK (peer_integrator BETWEEN 0 AND 65535),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, peer_user, peer_server, peer_device, peer_integrator),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- Requests to send, left by processes that do not own the account.
CREATE TABLE baton_mailbox (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    message_id text COLLATE "C" NOT NULL CHECK (octet_length(message_id) BETWEEN 1 AND 255),
    record bytea NOT NULL CHECK (octet_length(record) <= 16777216),
    written_at bigint NOT NULL,
    PRIMARY KEY (business_id, device_id, message_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);

-- The wall between tenants. A transaction names the tenants it acts for in `baton.businesses`, separated by commas (no
-- name contains one); whoever names none sees nothing and writes nothing. FORCE: that holds for the owner of the tables
-- too. The list is taken apart once per statement, not per row, because it is a subquery.
DO $$
DECLARE
    walled text;
BEGIN
    FOREACH walled IN ARRAY ARRAY[
        'tenant', 'device', 'fence',
        'counters', 'identity_keys', 'sessions', 'pre_keys', 'sender_keys',
        'app_state_sync_keys', 'app_state_version', 'app_state_mutation_macs', 'contacts', 'redacted_phones',
        'chat_settings', 'message_secrets', 'privacy_tokens', 'lid_map', 'event_buffer',
        'seen', 'outbox', 'sent', 'device_lists', 'mailbox'
    ] LOOP
        EXECUTE format('ALTER TABLE baton_%s ENABLE ROW LEVEL SECURITY', walled);
        EXECUTE format('ALTER TABLE baton_%s FORCE ROW LEVEL SECURITY', walled);
        EXECUTE format(
            'CREATE POLICY baton_wall ON baton_%s USING (business_id = ANY '
            '((SELECT string_to_array(current_setting(''baton.businesses'', true), '',''))::text[]))',
            walled
        );
    END LOOP;
END
$$;
