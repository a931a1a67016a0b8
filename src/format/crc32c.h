/* crc32c.h: CRC-32C (Castagnoli), the checksum of VHDX headers. zlib has the other CRC-32 only. */
#ifndef DISKGUARD_FORMAT_CRC32C_H
#define DISKGUARD_FORMAT_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The checksum of n bytes (RFC 3720, section 12.1 and appendix B.4). To go on over more bytes, give
 * the answer of the call before as `crc`; 0 to begin. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t n);

/* The same, without what the processor may have for it. */
uint32_t crc32c_by_table(uint32_t crc, const void *bytes, size_t n);

#endif
