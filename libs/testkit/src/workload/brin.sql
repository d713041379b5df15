-- Summaries that fit in place and ones that must move, a revmap that grows, ranges made and unmade.
CREATE TABLE brin_t (id int, name text, p box) WITH (autovacuum_enabled = off, fillfactor = 40);
CREATE INDEX brin_minmax ON brin_t USING brin (id, name)
    WITH (pages_per_range = 1, autosummarize = on);
CREATE INDEX brin_multi ON brin_t USING brin (id int4_minmax_multi_ops) WITH (pages_per_range = 4);
CREATE INDEX brin_bloom ON brin_t USING brin (name text_bloom_ops) WITH (pages_per_range = 2);
CREATE INDEX brin_inclusion ON brin_t USING brin (p) WITH (pages_per_range = 8);
INSERT INTO brin_t SELECT i, md5(random()::text), box(point(i, i), point(i + 1, i + 1))
    FROM generate_series(1, 6000 * :scale) i;
SELECT brin_summarize_new_values('brin_minmax'), brin_summarize_new_values('brin_multi');
SELECT brin_summarize_new_values('brin_bloom'), brin_summarize_new_values('brin_inclusion');
UPDATE brin_t SET name = repeat('long', 40) || id WHERE id % 5 = 0;
SELECT brin_desummarize_range('brin_minmax', 3), brin_summarize_range('brin_minmax', 3);
INSERT INTO brin_t SELECT i, repeat('z', i % 90), NULL FROM generate_series(1, 2000) i;
VACUUM brin_t;
REINDEX INDEX brin_bloom;
