-- Ownership by hosts: one lease per host instead of one per account, fences that know the database's history, wishes
-- beside facts, and wrapped keys of tenants.
--
-- Programs of version 1 cannot claim or renew any more. One that is running still commits under the epochs it has,
-- until a program of version 2 claims its accounts, which raises them.

-- How often the server has failed over: a failover begins a new timeline, and may have lost commits. Some services do
-- not tell; there it is always 1, and the generation of baton_cluster has to be raised by whoever promotes a standby.
DO $$
DECLARE
    tells boolean := true;
BEGIN
    BEGIN
        PERFORM pg_walfile_name(pg_current_wal_lsn());
    EXCEPTION WHEN OTHERS THEN
        tells := false;
    END;
    IF tells THEN
        CREATE FUNCTION baton_timeline() RETURNS bigint LANGUAGE sql STABLE AS
            'SELECT (''x'' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint';
    ELSE
        CREATE FUNCTION baton_timeline() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT 1::bigint';
    END IF;
END
$$;

-- The other half of the history: raised after a restore, or when commits are known to be lost. One row.
CREATE TABLE baton_cluster (
    one boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint NOT NULL DEFAULT 1 CHECK (generation BETWEEN 1 AND 4294967295)
);
INSERT INTO baton_cluster DEFAULT VALUES;

-- The hosts of the fleet. Every one renews its own row about once a second, whatever it holds; half of each page is
-- kept free for that. A row stays when its host is gone, until another takes the slot.
CREATE TABLE baton_host (
    -- Also the key of the advisory lock by which a host shows that it is there.
    slot smallint NOT NULL PRIMARY KEY CHECK (slot BETWEEN 1 AND 1023),
    -- One life of the host, its 64 bits as a signed number.
    incarnation bigint NOT NULL UNIQUE,
    name text COLLATE "C" NOT NULL CHECK (name ~ '^[A-Za-z0-9_.-]{1,64}$'),
    address text COLLATE "C" NOT NULL CHECK (octet_length(address) <= 255),
    zone text COLLATE "C" NOT NULL CHECK (octet_length(zone) <= 255),
    version text COLLATE "C" NOT NULL CHECK (octet_length(version) <= 255),
    state text COLLATE "C" NOT NULL CHECK (state IN ('active', 'draining', 'released', 'dead')),
    capacity bigint NOT NULL CHECK (capacity BETWEEN 0 AND 4294967295),
    -- How many accounts it says it holds.
    accounts bigint NOT NULL DEFAULT 0 CHECK (accounts BETWEEN 0 AND 4294967295),
    -- How many were handed over to it.
    gifts bigint NOT NULL DEFAULT 0 CHECK (gifts >= 0),
    -- By the clock of the database, and for how many microseconds the lease was given.
    expires_at timestamptz NOT NULL,
    ttl_us bigint NOT NULL CHECK (ttl_us >= 0),
    -- Since when its renewals have come without a gap: only such a host may judge others.
    good_since timestamptz NOT NULL,
    -- It holds its advisory lock, so that the loss of it means something.
    present boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- Facts. Leases of accounts are gone; who held one has to claim it again.
ALTER TABLE baton_fence DROP COLUMN expires_at, DROP COLUMN lease_us, DROP COLUMN holder;
ALTER TABLE baton_fence
    -- Incarnation of the host it was given to last; whether that lives is in baton_host.
    ADD COLUMN holder bigint,
    -- Goes up with every write of the fence, so that an answer is a write even if nothing else changes.
    ADD COLUMN commit_seq bigint NOT NULL DEFAULT 0 CHECK (commit_seq >= 0),
    -- The history in which the account's keys are known not to have gone back.
    ADD COLUMN sealed_timeline bigint NOT NULL DEFAULT baton_timeline() CHECK (sealed_timeline BETWEEN 0 AND 4294967295),
    ADD COLUMN sealed_generation bigint NOT NULL DEFAULT 1 CHECK (sealed_generation BETWEEN 0 AND 4294967295),
    -- Moved to another database.
    ADD COLUMN retired boolean NOT NULL DEFAULT false,
    ADD CHECK (NOT retired OR holder IS NULL);
-- A new account says in which history it begins.
ALTER TABLE baton_fence ALTER COLUMN sealed_timeline DROP DEFAULT, ALTER COLUMN sealed_generation DROP DEFAULT;
CREATE INDEX baton_fence_holder ON baton_fence (holder);

-- Wishes: which accounts should run, where, and not before when.
CREATE TABLE baton_placement (
    business_id text COLLATE "C" NOT NULL,
    device_id bigint NOT NULL,
    run boolean NOT NULL DEFAULT false,
    pin text COLLATE "C" CHECK (pin ~ '^[A-Za-z0-9_.-]{1,64}$'),
    not_before timestamptz NOT NULL DEFAULT 'epoch',
    PRIMARY KEY (business_id, device_id),
    FOREIGN KEY (business_id, device_id) REFERENCES baton_device (business_id, device_id) ON DELETE CASCADE
);
CREATE INDEX baton_placement_run ON baton_placement (business_id, device_id) WHERE run;
-- The wall is lifted for this statement alone: the table is locked until the migration is through.
ALTER TABLE baton_device NO FORCE ROW LEVEL SECURITY;
INSERT INTO baton_placement (business_id, device_id) SELECT business_id, device_id FROM baton_device;
ALTER TABLE baton_device FORCE ROW LEVEL SECURITY;

-- Keys of tenants, each wrapped by a key that is not here.
CREATE TABLE baton_vault (
    business_id text COLLATE "C" NOT NULL REFERENCES baton_tenant (business_id),
    number integer NOT NULL CHECK (number >= 1),
    wrapped bytea NOT NULL CHECK (octet_length(wrapped) BETWEEN 1 AND 4096),
    PRIMARY KEY (business_id, number)
);

-- The wall, as in 0001. Beside it there are transactions of the fleet: those of hosts that claim and hand over accounts
-- of whatever tenant. They name no tenant; the setting `baton.fleet` opens fences and wishes to them, which hold nothing
-- of a user, and the names of tenants for reading; nothing else, and they neither make nor delete any of it.
DO $$
DECLARE
    walled text;
    fleet CONSTANT text := '((SELECT current_setting(''baton.fleet'', true)) = ''on'')';
BEGIN
    FOREACH walled IN ARRAY ARRAY['placement', 'vault', 'host', 'cluster'] LOOP
        EXECUTE format('ALTER TABLE baton_%s ENABLE ROW LEVEL SECURITY', walled);
        EXECUTE format('ALTER TABLE baton_%s FORCE ROW LEVEL SECURITY', walled);
    END LOOP;
    FOREACH walled IN ARRAY ARRAY['placement', 'vault'] LOOP
        EXECUTE format(
            'CREATE POLICY baton_wall ON baton_%s USING (business_id = ANY '
            '((SELECT string_to_array(current_setting(''baton.businesses'', true), '',''))::text[]))',
            walled
        );
    END LOOP;
    FOREACH walled IN ARRAY ARRAY['fence', 'placement', 'tenant'] LOOP
        EXECUTE format('CREATE POLICY baton_fleet_reads ON baton_%s FOR SELECT USING %s', walled, fleet);
    END LOOP;
    EXECUTE 'CREATE POLICY baton_fleet_moves ON baton_fence FOR UPDATE USING ' || fleet;
    -- Hosts and history belong to no tenant: everybody may look, the fleet writes.
    FOREACH walled IN ARRAY ARRAY['host', 'cluster'] LOOP
        EXECUTE format('CREATE POLICY baton_everybody_reads ON baton_%s FOR SELECT USING (true)', walled);
        EXECUTE format('CREATE POLICY baton_fleet_moves ON baton_%s FOR UPDATE USING %s', walled, fleet);
    END LOOP;
    EXECUTE 'CREATE POLICY baton_fleet_joins ON baton_host FOR INSERT WITH CHECK ' || fleet;
END
$$;
