-- Tables for the row locks that several sessions take.
CREATE TABLE lock_parent (id int PRIMARY KEY, n int) WITH (autovacuum_enabled = off);
CREATE TABLE lock_child (id int, parent int REFERENCES lock_parent);
INSERT INTO lock_parent SELECT i, 0 FROM generate_series(1, 3000) i;
CREATE FUNCTION lock_one_by_one(last int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    FOR i IN 1 .. last LOOP
        BEGIN
            PERFORM FROM lock_parent WHERE id = i FOR KEY SHARE;
        EXCEPTION WHEN division_by_zero THEN NULL;
        END;
    END LOOP;
END $$;
