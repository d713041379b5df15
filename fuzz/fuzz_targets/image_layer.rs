#![no_main]

palimpsest_fuzz::target!(image_layer);
