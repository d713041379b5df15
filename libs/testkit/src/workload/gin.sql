-- Pending lists and none; posting lists that grow into posting trees, and shrink.
CREATE TABLE gin_t (id int, tags int[], doc tsvector, name text, small int)
    WITH (autovacuum_enabled = off);
CREATE INDEX gin_tags ON gin_t USING gin (tags) WITH (fastupdate = off);
CREATE INDEX gin_doc ON gin_t USING gin (doc) WITH (fastupdate = on, gin_pending_list_limit = 64);
CREATE INDEX gin_name ON gin_t USING gin (name gin_trgm_ops);
CREATE INDEX gin_small ON gin_t USING gin (small) WITH (fastupdate = off);
INSERT INTO gin_t
    SELECT i, ARRAY[1, i % 20, (random() * 1e5)::int],
        to_tsvector('simple', 'common ' || md5(random()::text) || ' w' || i % 100),
        substr(md5(random()::text), 1, 12), i % 3
    FROM generate_series(1, 4000 * :scale) i;
SELECT gin_clean_pending_list('gin_doc');
UPDATE gin_t SET tags = tags || 7 WHERE id % 5 = 0;
DELETE FROM gin_t WHERE id BETWEEN 500 AND 3000 * :scale;
VACUUM gin_t;
INSERT INTO gin_t SELECT i, ARRAY[1, 2], to_tsvector('simple', 'common again'), 'again', 1
    FROM generate_series(1, 1000) i;
VACUUM gin_t;
-- One key of many rows has a tree of several leaves, some of which become empty.
CREATE TABLE gin_tree (k int, n int) WITH (autovacuum_enabled = off);
CREATE INDEX gin_tree_k ON gin_tree USING gin (k) WITH (fastupdate = off);
INSERT INTO gin_tree SELECT 1, i FROM generate_series(1, 40000) i;
DELETE FROM gin_tree WHERE n BETWEEN 5000 AND 38000;
VACUUM gin_tree;
INSERT INTO gin_tree SELECT 1, i FROM generate_series(1, 10000) i;
CREATE INDEX gin_built ON gin_t USING gin (tags);
REINDEX INDEX gin_name;
