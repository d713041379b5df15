-- Indexes built beside readers and writers, in several transactions each.
CREATE TABLE concurrent_t (id int, v text);
INSERT INTO concurrent_t SELECT i, md5(i::text) FROM generate_series(1, 3000) i;
CREATE UNIQUE INDEX CONCURRENTLY concurrent_id ON concurrent_t (id);
CREATE INDEX CONCURRENTLY concurrent_v ON concurrent_t USING gist (v gist_trgm_ops);
REINDEX INDEX CONCURRENTLY concurrent_id;
REINDEX TABLE CONCURRENTLY concurrent_t;
DROP INDEX CONCURRENTLY concurrent_v;
