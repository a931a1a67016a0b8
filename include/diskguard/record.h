/* record.h: the claim record, the one thing that every host and every version of diskguard must
 * agree on.
 *
 * A record is UTF-8 text: the line "diskguard-claim <version>", then lines "name=value" in the
 * order below, then the line "sum=<8 hex digits>", the CRC-32 (ISO 3309, zlib's crc32) of every
 * byte before that line. Text values are percent-encoded (RFC 3986, section 2.1): bytes below 0x21,
 * above 0x7e and '%'. Numbers are decimal.
 *
 *   image=        path below the datastore when the record was written (for people: the key is the
 *                 inode)
 *   inode=        inode number; also the key in the record's file name
 *   handle=       "<type> <hex>": name_to_handle_at(2), or "-" where the file system has none
 *   generation=   also in the file name
 *   state=        free | claimed | armed | sealed | restoring | stuck
 *   seq=          counts every version of this generation's record up, in journal and claim alike
 *   host=         host uuid
 *   name=         host name
 *   installation=, boot=, daemon=   uuids
 *   pid=, start=  opener: thread group id and its start time in clock ticks since boot (proc(5),
 *                 stat, field 22); 0 0 = unknown
 *   uid=, gid=    owner of the opener
 *   since=        time for people, "YYYY-MM-DDThh:mm:ssZ"
 *   format=       format name ("qcow2"), "raw" (claim alone), or "none" (a claim for a namespace
 *                 operation)
 *   size=         virtual size in bytes; 0 where the format has none
 *   cut=          "-", or the length in bytes of a truncation that is under way (extents beyond it
 *                 may be gone)
 *   mtime=        "<seconds> <nanoseconds>" of the image before the seal; seconds before 1970 have
 *                 a '-'
 *   mtime-sealed= the first one that the sealed image showed, "0 0" while unknown or never sealed
 *   sync-error=   0, or the errno of a failed fsync of guest data
 *   fenced=       lock | unproven | no: does losing the fence lock stop this host's writes?
 *                 (src/core/io.h, enum fencing; as found when the claim was taken.) Records of
 *                 older versions do not have this line: no
 *   mtime-chosen= "<seconds> <nanoseconds> <seconds> <nanoseconds>": an mtime that was set while
 *                 the image was sealed, for the restore; and the one that the file itself had
 *                 then. Only there where one was set: older versions refuse the image meanwhile
 *   extent=       "<offset> <length> <true hex> <sealed hex> <was hex or ->", one line per extent,
 *                 in seal order. was: bytes that may still be on the datastore from the plan before
 *                 (during a reseal) */
#ifndef DISKGUARD_RECORD_H
#define DISKGUARD_RECORD_H

#define DG_RECORD_MAGIC "diskguard-claim"
#define DG_RECORD_VERSION 1
#define DG_RECORD_MAX (256u * 1024u) /* bytes; a longer file does not decode */

#endif
