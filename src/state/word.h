/* word.h: numbers and checksums that say by themselves whether they are right. Pure.
 *
 * One wrong bit of a word_make() is always found; a wrong sum, and any other change, is missed once
 * in 2^60 (2^24 for word_make()). That is meant for stray pointers, not for forgers. */
#ifndef DISKGUARD_STATE_WORD_H
#define DISKGUARD_STATE_WORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The sum of n bytes. salt: what else the sum depends on, as the place where the bytes are. */
uint64_t word_sum(const void *data, size_t n, uint64_t salt);

/* A sum that is never 0 and has two bits free for the caller: word_seal() & 3 is `bits`. */
uint64_t word_seal(const void *data, size_t n, uint64_t salt, unsigned bits);

/* A number below WORD_LIMIT in a word that can be stored at once. The result is never 0. */
#define WORD_LIMIT (UINT64_C(1) << 40)
uint64_t word_make(uint64_t value, uint64_t salt);
/* false: the word is wrong. *ret is only set for a right one. */
bool word_read(uint64_t word, uint64_t salt, uint64_t *ret);

#endif
