-- What is wished of a host, and how many of its accounts have a connection. Only adds: programs of version 2 that are
-- running go on; they say nothing of connections and take no notice of such a wish.
ALTER TABLE baton_host ADD COLUMN live INTEGER NOT NULL DEFAULT 0 CHECK (live BETWEEN 0 AND 4294967295);
-- That it give away everything it holds and take nothing.
ALTER TABLE baton_host ADD COLUMN drain INTEGER NOT NULL DEFAULT 0 CHECK (drain IN (0, 1));
