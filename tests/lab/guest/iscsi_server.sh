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
echo 1 >$group/attrib/generate_node_acls
echo 0 >$group/attrib/demo_mode_write_protect
echo 1 >$group/enable
