#![no_main]

palimpsest_fuzz::target!(delta_layer);
