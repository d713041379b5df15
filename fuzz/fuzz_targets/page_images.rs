#![no_main]

palimpsest_fuzz::target!(page_images);
