-- Subtransactions: released, rolled back, nested, many; and transactions that leave no trace.
CREATE TABLE sub_t (n int);
BEGIN;
INSERT INTO sub_t VALUES (1);
SAVEPOINT a;
INSERT INTO sub_t VALUES (2);
SAVEPOINT b;
INSERT INTO sub_t VALUES (3);
CREATE TABLE sub_gone AS SELECT generate_series(1, 500) n;
ROLLBACK TO b;
INSERT INTO sub_t VALUES (4);
RELEASE a;
COMMIT;
-- A page of pg_xact holds 32,768 transactions: this crosses into the next.
DO $$ BEGIN
    FOR i IN 1 .. 34000 LOOP
        BEGIN
            INSERT INTO sub_t VALUES (i);
            IF i % 10 = 0 THEN RAISE EXCEPTION 'undo'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END LOOP;
END $$;
BEGIN;
CREATE TABLE aborted_t (id int PRIMARY KEY, v text);
INSERT INTO aborted_t SELECT i, repeat('a', 100) FROM generate_series(1, 2000) i;
CREATE INDEX ON aborted_t USING hash (v);
ROLLBACK;
BEGIN;
TRUNCATE sub_t;
INSERT INTO sub_t VALUES (-1);
ROLLBACK;
BEGIN;
DROP TABLE sub_t;
ROLLBACK;
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM sub_t FOR UPDATE;
MOVE 10 IN c;
FETCH c;
DELETE FROM sub_t WHERE CURRENT OF c;
COMMIT;
