#!/usr/bin/env bash
# ocfs2_node.sh DISK: joins the o2cb cluster "lab" of all guests that share the disk (local heartbeat) and mounts it on /mnt/shared.
set -e
disk=$1
shift
mkdir -p /etc/ocfs2
i=0
for name in "$@"; do
    address=$(awk -v n="$name" '$2 == n && /^10.99/ {print $1}' /etc/hosts)
    printf 'node:\n\tip_port = 7777\n\tip_address = %s\n\tnumber = %d\n\tname = %s\n\tcluster = lab\n\n' "$address" $((i + 1)) "$name"
    i=$((i + 1))
done >/etc/ocfs2/cluster.conf
printf 'cluster:\n\tnode_count = %d\n\tname = lab\n' $i >>/etc/ocfs2/cluster.conf
modprobe configfs
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
modprobe ocfs2_stack_o2cb
modprobe ocfs2
modprobe ocfs2_dlmfs
modprobe fuse
mkdir -p /dlm
mount -t ocfs2_dlmfs ocfs2_dlmfs /dlm
echo o2cb >/sys/fs/ocfs2/cluster_stack
o2cb register-cluster lab
cluster=/sys/kernel/config/cluster/lab
echo 7 >$cluster/heartbeat/dead_threshold # heartbeats of 2 s: dead after 12 s
echo 10000 >$cluster/idle_timeout_ms
echo 2000 >$cluster/keepalive_delay_ms
echo 2000 >$cluster/reconnect_delay_ms
echo reset >$cluster/fence_method
mkdir -p /mnt/shared
mount -t ocfs2 "$disk" /mnt/shared
