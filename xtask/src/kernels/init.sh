#!/bin/busybox sh
# The first process of the guest. busybox is called by name: its own ip and tc are not the ones
# that steer and the lab need.
export PATH=/usr/sbin:/usr/bin
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
$busybox mkdir /dev/pts
$busybox mount -t devpts devpts /dev/pts
$busybox mount -t bpf bpf /sys/fs/bpf
$busybox mount -t tmpfs tmpfs /run
$busybox mount -t tmpfs tmpfs /tmp
modprobe tun
modprobe pppoe
# As a service finds it: before Linux 5.11 BPF maps are charged to it.
ulimit -l 64
$busybox stty -F /dev/ttyS1 raw
printf 'booted\tok\t%s\n' "$($busybox uname -r)" >/dev/ttyS1
steer-guest >/dev/ttyS1 2>/dev/ttyS0
printf 'ended\tok\t%s\n' "$?" >/dev/ttyS1
$busybox sync
$busybox poweroff -f
