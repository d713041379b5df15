-- All that VACUUM and its relatives do to a table: visibility bits, freezing, truncation, rewriting.
CREATE TABLE vacuum_t (id int PRIMARY KEY, name text) WITH (autovacuum_enabled = off);
INSERT INTO vacuum_t SELECT i, md5(i::text) FROM generate_series(1, 8000 * :scale) i;
VACUUM vacuum_t;
-- Clears visibility bits that were just set.
UPDATE vacuum_t SET name = 'changed' WHERE id % 100 = 0;
DELETE FROM vacuum_t WHERE id % 3 = 0;
VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) vacuum_t;
DELETE FROM vacuum_t WHERE id % 1000 = 1;
SELECT FROM vacuum_t WHERE id < 3000 FOR UPDATE;
-- The end of the file becomes empty and is cut off.
DELETE FROM vacuum_t WHERE id > 4000 * :scale;
VACUUM (TRUNCATE) vacuum_t;
INSERT INTO vacuum_t SELECT i, 'grown again' FROM generate_series(10000 * :scale, 11000 * :scale) i;
VACUUM (INDEX_CLEANUP off) vacuum_t;
CLUSTER vacuum_t USING vacuum_t_pkey;
VACUUM FULL vacuum_t;
DELETE FROM vacuum_t;
VACUUM vacuum_t;
ANALYZE;
