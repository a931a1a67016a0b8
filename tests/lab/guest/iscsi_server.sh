#!/usr/bin/env bash
# iscsi_server.sh: offers the disk /dev/vdb as an iSCSI logical unit (LIO, the kernel's target).
set -e
modprobe configfs
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
modprobe target_core_mod
modprobe target_core_iblock
modprobe iscsi_target_mod
mkdir -p /var/target/pr /etc/target/pr
core=/sys/kernel/config/target/core/iblock_0/disk
mkdir -p $core
echo udev_path=/dev/vdb >$core/control
echo 1 >$core/enable
group=/sys/kernel/config/target/iscsi/iqn.2026-01.lab:s/tpgt_1
mkdir -p $group/lun/lun_1 $group/np/10.99.0.1:3260
ln -s $core $group/lun/lun_1/disk
echo 0 >$group/attrib/authentication
# On a busy machine a guest may not answer for 30 s, LIO's default for a connection that is given up.
for node in a b; do # the kernel makes initiators' names lower case (RFC 3722)
    acl=$group/acls/iqn.2026-01.lab:$node
    mkdir -p $acl/lun_1
    echo 60 >$acl/attrib/nopin_response_timeout
    echo 60 >$acl/attrib/nopin_timeout
    ln -s $group/lun/lun_1 $acl/lun_1/disk
done
echo 1 >$group/enable
