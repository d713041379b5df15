-- Updates that stay on their page, the chains they make, and pruning.
CREATE TABLE hot_t (id int PRIMARY KEY, n int, name text)
    WITH (fillfactor = 50, autovacuum_enabled = off);
INSERT INTO hot_t SELECT i, 0, repeat('h', i % 60) FROM generate_series(1, 3000 * :scale) i;
UPDATE hot_t SET n = n + 1;
UPDATE hot_t SET n = n + 1 WHERE id % 2 = 0;
UPDATE hot_t SET n = n + 1, name = name || '.' WHERE id % 3 = 0;
SELECT sum(n) FROM hot_t;
UPDATE hot_t SET n = n + 1 WHERE id < 500;
UPDATE hot_t SET n = n + 1 WHERE id < 500;
UPDATE hot_t SET id = -id WHERE id % 11 = 0;
DELETE FROM hot_t WHERE id % 13 = 0;
VACUUM hot_t;
UPDATE hot_t SET n = n + 1 WHERE id % 2 = 1;
