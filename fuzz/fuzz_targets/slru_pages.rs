#![no_main]

palimpsest_fuzz::target!(slru_pages);
