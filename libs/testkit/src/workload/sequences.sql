-- Sequences move on, are set, cached, restarted, owned and dropped.
CREATE SEQUENCE plain_s;
CREATE SEQUENCE cached_s CACHE 20 INCREMENT 5;
CREATE TABLE seq_t (id bigint GENERATED ALWAYS AS IDENTITY, serial serial, n int);
INSERT INTO seq_t (n) SELECT i FROM generate_series(1, 1000) i;
SELECT count(nextval('plain_s')), count(nextval('cached_s')) FROM generate_series(1, 500);
SELECT setval('plain_s', 7000), setval('cached_s', 12345, false);
SELECT nextval('plain_s'), nextval('cached_s');
ALTER SEQUENCE plain_s RESTART 5 MAXVALUE 1000000;
SELECT nextval('plain_s');
ALTER SEQUENCE cached_s AS int;
DROP SEQUENCE cached_s;
