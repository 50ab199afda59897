#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a libvirtd until standard input ends; says "ready" when it answers. Started in mount, network and process
# namespaces of its own, which take everything along: networks, machines, disks (in memory, below /run).
set -eu
for dir in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
	mkdir -p "$dir"
	mount -t tmpfs tmpfs "$dir"
done
mkdir /run/lock
ip link set lo up
# No cgroups, users or labels of the host for the machines.
printf '%s\n' 'user = "root"' 'group = "root"' 'security_driver = "none"' 'cgroup_controllers = []' 'namespaces = []' \
	>/etc/libvirt/qemu.conf
virtlogd --daemon
libvirtd --daemon
virsh --quiet --connect qemu:///system version >/run/libvirt/version
echo ready
cat
