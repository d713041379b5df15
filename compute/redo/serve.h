/*
 * The protocol on descriptors 0 and 1. Its bytes are in README.md.
 */
#ifndef PAL_SERVE_H
#define PAL_SERVE_H

#include "postgres.h"

/*
 * Says "ready", then answers requests in their order until the input ends. `walls` is told to those
 * who ask.
 */
extern void pal_serve(uint32 walls) pg_attribute_noreturn();

#endif
