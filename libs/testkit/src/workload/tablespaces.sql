-- Relations that live and move outside the default tablespace.
SET allow_in_place_tablespaces = on;
SELECT 'CREATE TABLESPACE workload_space LOCATION '''''
    WHERE NOT EXISTS (SELECT FROM pg_tablespace WHERE spcname = 'workload_space') \gexec
CREATE TABLESPACE workload_passing LOCATION '';
CREATE TABLE space_dropped (id int PRIMARY KEY) TABLESPACE workload_passing;
DROP TABLE space_dropped;
DROP TABLESPACE workload_passing;
CREATE TABLE space_t (id int PRIMARY KEY, v text) TABLESPACE workload_space;
INSERT INTO space_t SELECT i, md5(i::text) FROM generate_series(1, 1000) i;
CREATE TABLE space_moved AS SELECT generate_series(1, 3000) n;
CREATE INDEX space_index ON space_moved (n);
ALTER TABLE space_moved SET TABLESPACE workload_space;
ALTER INDEX space_index SET TABLESPACE workload_space;
ALTER TABLE space_t SET TABLESPACE pg_default;
ALTER INDEX space_index SET TABLESPACE pg_default;
CREATE INDEX space_kept ON space_moved (n) TABLESPACE workload_space;
CREATE UNLOGGED TABLE space_unlogged (id int PRIMARY KEY USING INDEX TABLESPACE workload_space)
    TABLESPACE workload_space;
INSERT INTO space_unlogged SELECT generate_series(1, 500);
UPDATE space_moved SET n = n + 1 WHERE n % 4 = 0;
