-- An access method from an extension, which writes generic WAL records.
CREATE TABLE generic_t (a int, b int, c int) WITH (autovacuum_enabled = off);
CREATE INDEX generic_bloom ON generic_t USING bloom (a, b, c) WITH (length = 80, col1 = 2);
INSERT INTO generic_t
    SELECT (random() * 1000)::int, i, i % 17 FROM generate_series(1, 4000 * :scale) i;
DELETE FROM generic_t WHERE b % 2 = 0;
VACUUM generic_t;
INSERT INTO generic_t SELECT i, i, i FROM generate_series(1, 500) i;
