-- Bucket splits, overflow pages, a unique-looking and a heavily repeated key, squeezing by VACUUM.
CREATE TABLE hash_t (n int, name text) WITH (autovacuum_enabled = off);
CREATE INDEX hash_n ON hash_t USING hash (n);
CREATE INDEX hash_name ON hash_t USING hash (name) WITH (fillfactor = 50);
INSERT INTO hash_t SELECT i, 'name ' || i % 50 FROM generate_series(1, 6000 * :scale) i;
DELETE FROM hash_t WHERE n % 4 <> 0;
VACUUM hash_t;
INSERT INTO hash_t SELECT (random() * 1e6)::int, md5(random()::text)
    FROM generate_series(1, 3000 * :scale);
SET enable_seqscan = off;
SET enable_bitmapscan = off;
INSERT INTO hash_t SELECT 400, 'name ' || i % 3 FROM generate_series(1, 6000) i;
-- Thins out long overflow chains, so that their tuples move to the front.
DELETE FROM hash_t WHERE n = 400 AND random() < 0.6;
VACUUM hash_t;
-- A scan marks dead entries, and inserts remove those before they add a page.
DELETE FROM hash_t WHERE n = 400;
SELECT count(name) FROM hash_t WHERE n = 400;
INSERT INTO hash_t SELECT 400, 'late' FROM generate_series(1, 3000) i;
CREATE INDEX hash_later ON hash_t USING hash (name);
REINDEX INDEX hash_n;
