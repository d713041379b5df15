#![no_main]

palimpsest_fuzz::target!(wal_pages);
