-- Several operator classes, a sorted and an unsorted build, an exclusion constraint, page deletion.
CREATE TABLE gist_t (id int, p point, b box, name text) WITH (autovacuum_enabled = off);
CREATE INDEX gist_p ON gist_t USING gist (p);
CREATE INDEX gist_b ON gist_t USING gist (b) WITH (fillfactor = 60);
CREATE INDEX gist_name ON gist_t USING gist (name gist_trgm_ops);
INSERT INTO gist_t
    SELECT i, point(random() * 1000, random() * 1000),
        box(point(i % 100, i / 100), point(i % 100 + 1, i / 100 + 1)), md5(random()::text)
    FROM generate_series(1, 3000 * :scale) i;
UPDATE gist_t SET p = point(random(), random()) WHERE id % 6 = 0;
DELETE FROM gist_t WHERE id BETWEEN 300 AND 2600 * :scale;
VACUUM gist_t;
DELETE FROM gist_t WHERE id = 10;
VACUUM gist_t;
INSERT INTO gist_t SELECT i, point(random() * 1000, random() * 1000),
        box(point(i % 100, i / 100), point(i % 100 + 1, i / 100 + 1)), md5(i::text)
    FROM generate_series(1, 2000 * :scale) i;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
DELETE FROM gist_t WHERE id > 2900 * :scale;
SELECT count(*) FROM gist_t WHERE p <@ box '((0,0),(1000,1000))';
INSERT INTO gist_t SELECT i, point(i, i), box(point(i, i), point(i, i)), 'late'
    FROM generate_series(1, 1000) i;
VACUUM gist_t;
CREATE INDEX gist_sorted ON gist_t USING gist (p);
CREATE INDEX gist_buffered ON gist_t USING gist (b) WITH (buffering = on);
CREATE TABLE gist_excluded (during int4range, EXCLUDE USING gist (during WITH &&));
INSERT INTO gist_excluded SELECT int4range(i * 10, i * 10 + 9) FROM generate_series(1, 500) i;
