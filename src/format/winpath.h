/* winpath.h: file names as Windows writes them into VHD and VHDX images. For the files in
 * src/format only. */
#ifndef DISKGUARD_FORMAT_WINPATH_H
#define DISKGUARD_FORMAT_WINPATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* UTF-16 to UTF-8, up to the first U+0000 or the end. 0; -EUCLEAN: an odd length, half a surrogate
 * pair, an empty text, or longer than `size` - 1 bytes. */
int winpath_utf8(const uint8_t *p, size_t bytes, bool big_endian, char *ret, size_t size);

/* Makes a path of struct format_link of it, in place: '/' for '\', no "./" in front. -EUCLEAN: it
 * leads to a drive or a server. */
int winpath_follow(char *path);

#endif
