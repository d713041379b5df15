#![no_main]

palimpsest_fuzz::target!(conninfo);
