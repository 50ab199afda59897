#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# boot.sh ROOT MOUNTPOINT NAME: boots systemd on a throw-away copy of ROOT and stays until it ends.
# Started in mount and network namespaces of its own, which therefore hold the copy, the host's end
# of the veth pair (ve-NAME) and nothing that outlives it. TERM ends the machine at once.
set -eu
root=$1 mountpoint=$2 name=$3
shift 3

mount -t tmpfs -o mode=0755 tmpfs "$mountpoint"
mkdir "$mountpoint/upper" "$mountpoint/work" "$mountpoint/root"
mount -t overlay -o "lowerdir=$root,upperdir=$mountpoint/upper,workdir=$mountpoint/work" overlay "$mountpoint/root"
ln -sf /dev/null "$mountpoint/root/etc/systemd/system/systemd-modules-load.service" # the kernel is the host's
ip link set lo up

if [ -d /run/systemd/system ]; then
	groups=
else # no systemd to ask for a cgroup: make one in the unified hierarchy and, if there is one, systemd's old one
	mount -t tmpfs tmpfs /run
	set -- --keep-unit
	groups=$(awk '$9 == "cgroup2" || /[ ,]name=systemd/ { print $5 "/'"$name"'" }' /proc/self/mountinfo)
	for group in $groups; do
		mkdir "$group"
		echo $$ >"$group/cgroup.procs"
	done
fi

export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=1
run() {
	setpriv --pdeathsig TERM systemd-nspawn -D "$mountpoint/root" --machine="$name" --boot --register=no "$@" \
		--network-veth --resolv-conf=off --timezone=off --link-journal=no --capability=all \
		--system-call-filter="bpf perf_event_open kcmp" &
	nspawn=$!
	status=0
	wait $nspawn || status=$?
	while kill -0 $nspawn 2>/dev/null; do wait $nspawn || status=$?; done # the trap interrupts wait
}

# Its init takes everything in the machine with it; nspawn then ends by itself.
trap 'kill -KILL $(cat /proc/$nspawn/task/$nspawn/children) || kill -KILL $nspawn' TERM
run "$@"
while [ $status = 133 ]; do run "$@"; done # a reboot, which with --keep-unit is left to the caller

for group in $groups; do
	echo $$ >"${group%/*}/cgroup.procs"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
		sleep 0.1
	done
done
