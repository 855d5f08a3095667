-- What is wished of a host, how many of its accounts have a connection, and one look at the mail of all accounts of a
-- host. Only adds: programs of version 2 go on, say nothing of connections, and take no notice of such a wish.
ALTER TABLE baton_host
    ADD COLUMN live bigint NOT NULL DEFAULT 0 CHECK (live BETWEEN 0 AND 4294967295),
    -- That it give away everything it holds and take nothing.
    ADD COLUMN drain boolean NOT NULL DEFAULT false;

-- Requests are of tenants, and the fleet does not see them. The one statement that looks for accounts with mail says
-- `baton.post` for its transaction; that opens the table for reading and nothing else.
CREATE POLICY baton_post ON baton_mailbox FOR SELECT USING ((SELECT current_setting('baton.post', true)) = 'on');
