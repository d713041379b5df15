#![no_main]

palimpsest_fuzz::target!(control_file);
