-- Large objects: written, overwritten, shortened, removed.
SELECT lo_from_bytea(910001, decode(repeat('0123456789abcdef', 2000), 'hex'));
SELECT lo_from_bytea(910002, decode(repeat('ff', 50000), 'hex'));
SELECT lo_create(910003);
SELECT lo_put(910003, 3000 * i, decode(md5(i::text), 'hex')) FROM generate_series(0, 50) i;
SELECT lo_put(910001, 5000, decode(repeat('00', 3000), 'hex'));
BEGIN;
SELECT lo_truncate(lo_open(910002, 131072), 100);
COMMIT;
SELECT lo_unlink(910001);
VACUUM pg_largeobject;
