#!/usr/bin/busybox sh
# First process of the emulated machine. What it says here is read by `cargo xtask test --vm`.

if [ -z "$IN_ROOT" ]; then
    /usr/bin/busybox --install -s /usr/bin 2>/dev/null
    export PATH=/usr/sbin:/usr/bin IN_ROOT=1
    # The kernel's rootfs cannot be left by pivot_root(2), as tasks do; a mount of it on top can.
    mount --bind / /mnt && cd /mnt && mount --move . / && exec chroot . /init
    echo "cannot set up the root file system"
    poweroff -f
fi

mount -t devtmpfs dev /dev
exec >/dev/ttyS1 2>&1 </dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount --make-rshared /
ip link set lo up
hostname guest
echo "@@ booted $(uname -r)"

status=0
run() {
    name=$1
    shift
    echo "@@ begin $name"
    timeout -s KILL 900 "$@"
    code=$?
    [ $code = 0 ] || status=1
    echo "@@ end $name $code"
}
. /tests.sh
echo "@@ status $status"
# The line is a slow one: what was said must be out before the machine goes.
sleep 1
poweroff -f
