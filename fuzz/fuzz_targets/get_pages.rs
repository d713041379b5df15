#![no_main]

palimpsest_fuzz::target!(get_pages);
