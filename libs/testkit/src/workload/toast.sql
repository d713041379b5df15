-- Values stored out of line: compressed and not, replaced, removed.
CREATE FUNCTION noise(length int) RETURNS text LANGUAGE sql AS
    $$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, length / 32) $$;
CREATE TABLE toast_t (id int PRIMARY KEY, v text, plain text) WITH (autovacuum_enabled = off);
ALTER TABLE toast_t ALTER plain SET STORAGE EXTERNAL;
INSERT INTO toast_t
    SELECT i, noise(3000 + 300 * (i % 20)), repeat('palimpsest', 100 * (i % 30))
    FROM generate_series(1, 150 * :scale) i;
INSERT INTO toast_t VALUES (-1, noise(200000), repeat('big', 100000));
UPDATE toast_t SET v = noise(5000) WHERE id % 3 = 0;
UPDATE toast_t SET id = id + 1000000 WHERE id % 5 = 0;
DELETE FROM toast_t WHERE id % 4 = 0;
VACUUM toast_t;
INSERT INTO toast_t SELECT 2000000 + i, repeat(md5(i::text), 400), NULL
    FROM generate_series(1, 50) i;
