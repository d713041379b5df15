-- Quad trees, k-d trees, radix trees and networks; moved tuples leave redirects for VACUUM.
CREATE TABLE spgist_t (id int, p point, name text, net inet, r int4range)
    WITH (autovacuum_enabled = off);
CREATE INDEX spgist_quad ON spgist_t USING spgist (p quad_point_ops);
CREATE INDEX spgist_kd ON spgist_t USING spgist (p kd_point_ops);
CREATE INDEX spgist_text ON spgist_t USING spgist (name text_ops) INCLUDE (id);
CREATE INDEX spgist_net ON spgist_t USING spgist (net);
CREATE INDEX spgist_range ON spgist_t USING spgist (r);
INSERT INTO spgist_t
    SELECT i, point(random() * 100, random() * 100),
        repeat('prefix', i % 5) || md5(random()::text),
        ('10.' || i % 200 || '.' || i % 250 || '.' || i % 90)::inet, int4range(i, i + i % 50)
    FROM generate_series(1, 3000 * :scale) i;
INSERT INTO spgist_t SELECT i, point(1, 1), 'same', '10.0.0.1', 'empty'
    FROM generate_series(1, 300) i;
DELETE FROM spgist_t WHERE id % 3 = 0;
VACUUM spgist_t;
INSERT INTO spgist_t SELECT i, point(i % 7, i % 11), 'prefixprefix' || i, '192.168.0.0/16', NULL
    FROM generate_series(1, 1500) i;
DELETE FROM spgist_t WHERE id < 1400;
VACUUM spgist_t;
CREATE INDEX spgist_built ON spgist_t USING spgist (name);
