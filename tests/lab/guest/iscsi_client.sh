#!/usr/bin/env bash
# iscsi_client.sh: logs in at S; the logical unit becomes /dev/sda.
set -e
modprobe iscsi_tcp
modprobe sd_mod
mkdir -p /run/lock/iscsi /var/lib/iscsi /etc/iscsi
echo "InitiatorName=iqn.2026-01.lab:$(hostname)" >/etc/iscsi/initiatorname.iscsi
sed -i 's/^node.session.timeo.replacement_timeout.*/node.session.timeo.replacement_timeout = 120/; s/^iscsid.startup.*/#/' /etc/iscsi/iscsid.conf
iscsid
iscsiadm -m discovery -t st -p 10.99.0.1
iscsiadm -m node -T iqn.2026-01.lab:s -p 10.99.0.1 --login
for _ in {1..200}; do
    [ -b /dev/sda ] && exit 0
    read -r -t 0.05 <> <(:) || true
done
echo "no /dev/sda" >&2
exit 1
