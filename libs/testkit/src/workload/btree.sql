-- Splits left, right and in the middle; deduplication; dead entries; page deletion by VACUUM.
CREATE TABLE btree_t (id int, random_n int, few int, name text) WITH (autovacuum_enabled = off);
CREATE UNIQUE INDEX btree_id ON btree_t (id);
CREATE INDEX btree_random ON btree_t (random_n DESC) INCLUDE (few);
CREATE INDEX btree_few ON btree_t (few);
CREATE INDEX btree_few_plain ON btree_t (few) WITH (deduplicate_items = off);
CREATE INDEX btree_name ON btree_t (name text_pattern_ops) WHERE few < 5;
INSERT INTO btree_t
    SELECT i, (random() * 1e9)::int, i % 10, md5(random()::text) || repeat('x', i % 300)
    FROM generate_series(1, 8000 * :scale) i;
INSERT INTO btree_t
    SELECT -i, (random() * 1e9)::int, 3, md5(random()::text) FROM generate_series(1, 2000 * :scale) i;
UPDATE btree_t SET random_n = random_n + 1 WHERE id % 7 = 0;
-- Index scans mark dead entries, and the inserts after them remove those instead of splitting.
DELETE FROM btree_t WHERE id BETWEEN 2000 AND 3000;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(name) FROM btree_t WHERE id BETWEEN 1900 AND 3100;
SELECT count(name) FROM btree_t WHERE few = 4;
INSERT INTO btree_t SELECT i, i, 4, 'again' FROM generate_series(2000, 3000) i;
-- Enough neighbours go that whole leaf pages, and their parents' downlinks, go too.
DELETE FROM btree_t WHERE id > 4000 * :scale AND id < 7500 * :scale;
VACUUM btree_t;
-- Once a later transaction has ended nobody can be on those pages, and inserts take them again.
DELETE FROM btree_t WHERE id = 1;
VACUUM btree_t;
INSERT INTO btree_t SELECT i, i, i % 10, 'reused' FROM generate_series(1, 7000 * :scale) i
    ON CONFLICT (id) DO UPDATE SET name = 'conflict';
INSERT INTO btree_t VALUES (1, 1, 1, 'ignored') ON CONFLICT DO NOTHING;
REINDEX INDEX btree_name;
REINDEX TABLE btree_t;
