/*
 * The protocol on descriptors 0 and 1. Its bytes are in README.md.
 */
#ifndef PAL_SERVE_H
#define PAL_SERVE_H

#include "postgres.h"

/* Says "ready", then answers requests in their order until the input ends. */
extern void pal_serve(void) pg_attribute_noreturn();

#endif
