/* C's stdlib.h for zstd, whose contexts get all their memory from outside: there is no heap. */
#ifndef INSTAR_STDLIB_H
#define INSTAR_STDLIB_H
#include <stddef.h>

static inline void *malloc(size_t bytes) { (void)bytes; return NULL; }
static inline void *calloc(size_t count, size_t bytes) { (void)count; (void)bytes; return NULL; }
static inline void free(void *place) { (void)place; }

#endif
