#!/usr/bin/env bash
# nfs_client.sh MOUNTPOINT VERSION [MORE OPTIONS]: mounts the server's export. VERSION: 3 or 4.2.
set -e
modprobe nfsv3
modprobe nfsv4
modprobe fuse
if ! pidof rpcbind >/dev/null; then
    mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
    rpcbind -w
    rpc.statd # and sm-notify: the server forgets the locks of this host's former life
fi
mkdir -p "$1"
case $2 in
3) mount -t nfs -o "vers=3,proto=tcp,mountproto=tcp${3:+,$3}" S:/srv/disk/export "$1" ;;
*) mount -t nfs -o "vers=$2${3:+,$3}" S:/ "$1" ;;
esac
