-- Records that change no page.
SELECT pg_create_restore_point('workload');
SELECT pg_logical_emit_message(true, 'workload', 'in a transaction');
SELECT pg_logical_emit_message(false, 'workload', repeat('m', 20000));
CHECKPOINT;
SELECT pg_switch_wal();
