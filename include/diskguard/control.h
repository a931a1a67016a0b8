/* control.h: the control protocol between a running diskguard and diskguardctl.
 *
 * A Unix stream socket at DG_CONTROL_DIR/<major>:<minor>.sock, the device number of the view
 * (proc(5), mountinfo, field 3), so that no file of the view need be touched to find it. A request
 * is one line of JSON, at most DG_CONTROL_LINE_MAX bytes,
 * {"version":1,"command":"list"|"hosts"|"status"|"retry", "image":"path"?}; the answer is one line
 * of JSON, {"version":1,"ok":true,...} or {"version":1,"ok":false,"error":"text"}, then end of
 * file.
 *
 * The answer to "list" has "images", those that this host holds, and "shared", those open for write
 * here that many hosts may write on purpose (option shared=): "image", the path below the
 * datastore, "inode", "writers", the number of handles, and "pid" and "start" of one that opened
 * it.
 *
 * {"command":"takeover","image":"path","unproven":true|false} begins one attempt to take an image
 * over by the fence lock (src/guard/takeover.h) and answers {"ticket":n};
 * {"command":"takeover-result","ticket":n} answers {"ended":false}, or, once,
 * {"ended":true,"result":"free"|"wait"|"held"| "refused"|"failed","text":"why"}: free: nobody holds
 * it now; wait: ask for another attempt in a second; held: its holder lives. Commands that change
 * anything need root or the daemon's user (SO_PEERCRED). The daemon answers from memory: it never
 * waits on the datastore. It answers until every image is restored, or cannot be; "mounted" of
 * status: the kernel has the view mounted somewhere (false: it was unmounted, or aborted);
 * "stopping": no request is served any more. */
#ifndef DISKGUARD_CONTROL_H
#define DISKGUARD_CONTROL_H

#define DG_CONTROL_DIR "/run/diskguard"
#define DG_CONTROL_VERSION 1
#define DG_CONTROL_LINE_MAX 8192

#endif
