/* The three functions of C's string.h that zstd calls; every guest has them. */
#ifndef INSTAR_STRING_H
#define INSTAR_STRING_H
#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int byte, size_t bytes);

#endif
