#![no_main]

palimpsest_fuzz::target!(backup_label);
