-- Only the init forks of these are logged, until a table changes its mind.
CREATE UNLOGGED TABLE unlogged_t (id serial PRIMARY KEY, tags int[], p point, name text);
CREATE INDEX ON unlogged_t USING gin (tags);
CREATE INDEX ON unlogged_t USING gist (p);
CREATE INDEX ON unlogged_t USING spgist (p);
CREATE INDEX ON unlogged_t USING hash (name);
CREATE INDEX ON unlogged_t USING brin (id);
INSERT INTO unlogged_t (tags, p, name)
    SELECT ARRAY[i % 5, i], point(i, i), md5(i::text) FROM generate_series(1, 1000) i;
CREATE UNLOGGED TABLE unlogged_kept AS SELECT generate_series(1, 500) n;
ALTER TABLE unlogged_t SET LOGGED;
UPDATE unlogged_t SET name = 'logged' WHERE id % 9 = 0;
CREATE TABLE unlogged_later AS SELECT generate_series(1, 500) n;
ALTER TABLE unlogged_later SET UNLOGGED;
CREATE UNLOGGED TABLE unlogged_dropped (id int PRIMARY KEY);
DROP TABLE unlogged_dropped;
CREATE UNLOGGED SEQUENCE unlogged_s;
SELECT count(nextval('unlogged_s')) FROM generate_series(1, 100);
CREATE UNLOGGED SEQUENCE unlogged_s_later;
SELECT nextval('unlogged_s_later');
ALTER SEQUENCE unlogged_s_later SET LOGGED;
SELECT nextval('unlogged_s_later');
