#![no_main]

palimpsest_fuzz::target!(base_backup);
