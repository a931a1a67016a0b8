#!/usr/bin/env bash
# nfs_server.sh LEASE GRACE [restarted] [EXPORT OPTIONS]: exports the disk /dev/vdb by kernel NFS (v3, v4.1, v4.2). LEASE and GRACE are seconds, at least 10 (nfsd's own limit).
# restarted: clients may have locks from before, so the grace period is waited out.
set -e
lease=$1 grace=$2 restarted=$3 options=${4:-rw,sync,no_root_squash,no_subtree_check,fsid=0}
modprobe ext4
modprobe nfsd
mkdir -p /srv/disk
mount -t ext4 /dev/vdb /srv/disk
# The server's records of clients and locks stay on the disk, so that a server that lost its power recovers as a real one does.
mkdir -p /srv/disk/state /srv/disk/export
chmod 777 /srv/disk/export
mkdir -p /var/lib/nfs
mount --bind /srv/disk/state /var/lib/nfs
mkdir -p /var/lib/nfs/{sm,sm.bak,nfsdcld,v4recovery,rpc_pipefs}
touch /var/lib/nfs/{etab,rmtab,state}
chown -R statd /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/state
mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
mount -t nfsd nfsd /proc/fs/nfsd
rpcbind -w
rpc.statd --no-notify
nfsdcld
echo "$lease" >/proc/fs/nfsd/nfsv4leasetime
echo "$grace" >/proc/fs/nfsd/nfsv4gracetime
if [ -n "$restarted" ]; then echo "$grace"; else echo 1; fi >/proc/sys/fs/nfs/nlm_grace_period
# fsid=0: the root of NFSv4 is the export; the guest's own root, an overlay, cannot be exported.
exportfs -i -o "$options" 10.99.0.0/24:/srv/disk/export
rpc.mountd -t 2
rpc.nfsd -H 10.99.0.1 -V 3 -V 4 -V 4.1 -V 4.2 8
sm-notify -m 1 || true
# A server with an empty disk has nobody to wait for. EBUSY: it noticed that itself.
[ -n "$restarted" ] || echo Y 2>/dev/null >/proc/fs/nfsd/v4_end_grace || true
