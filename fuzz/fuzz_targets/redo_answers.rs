#![no_main]

palimpsest_fuzz::target!(redo_answers);
