#!/usr/bin/env bash
# Process 1 of a lab guest: brings the machine up, then keeps the agent running and reaps orphans.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
here=$(dirname "$0")
for word in $(</proc/cmdline); do
    case $word in
    lab.node=*) node=${word#*=} ;;
    lab.nodes=*) nodes=${word#*=} ;;
    lab.machine=*) machine=${word#*=} ;;
    esac
done

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /dev/pts /dev/shm /run/lock /run/rpcbind /run/sendsigs.omit.d /lab /mnt
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd /dev/fd
mount -t tmpfs tmpfs /dev/shm
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none lab /lab
rm -f /etc/mtab
ln -s /proc/self/mounts /etc/mtab
hostname "$node"
{
    echo "127.0.0.1 localhost"
    i=1
    for name in ${nodes//,/ }; do
        echo "10.99.0.$i $name"
        [ "$name" = "$node" ] && me=$i
        i=$((i + 1))
    done
} >/etc/hosts
sed -i 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf 2>/dev/null || echo "hosts: files" >/etc/nsswitch.conf
printf '%s\n' "$machine" >/etc/machine-id
# The users that the packages' installation would have made.
grep -q ^statd: /etc/passwd || echo "statd:x:991:65534::/var/lib/nfs:/usr/sbin/nologin" >>/etc/passwd
grep -q ^_rpc: /etc/passwd || echo "_rpc:x:992:65534::/run/rpcbind:/usr/sbin/nologin" >>/etc/passwd

ip link set lo up
device=$(ls /sys/class/net | grep -v '^lo$' | head -n 1)
ip link set "$device" mtu 9000 up
ip addr add "10.99.0.$me/24" dev "$device"

# A small disk of the guest's own outlives its crashes: journal and installation id, and whom the NFS lock manager has to tell about a reboot.
for _ in {1..100}; do
    [ -b /dev/vda ] && break
    read -r -t 0.05 <> <(:)
done
modprobe ext4
mkdir -p /var/lib/own
mount -t ext4 /dev/vda /var/lib/own || echo "lab: no state disk" >/dev/console
mkdir -p -m 700 /var/lib/own/diskguard /var/lib/diskguard
mkdir -p /var/lib/own/nfs/{sm,sm.bak,rpc_pipefs} /var/lib/nfs
chown -R statd /var/lib/own/nfs/sm /var/lib/own/nfs/sm.bak
mount --bind /var/lib/own/diskguard /var/lib/diskguard
mount --bind /var/lib/own/nfs /var/lib/nfs

trap : CHLD
while :; do
    /usr/bin/python3 -SE "$here/agent.py" &
    wait $!
    echo "lab: the agent ended with $?" >/dev/console
    read -r -t 1 <> <(:)
done
