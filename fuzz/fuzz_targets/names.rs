#![no_main]

palimpsest_fuzz::target!(names);
