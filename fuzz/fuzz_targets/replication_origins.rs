#![no_main]

palimpsest_fuzz::target!(replication_origins);
