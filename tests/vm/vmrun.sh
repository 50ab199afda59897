#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a root command in a Debian guest with that release's own kernel, Python and bcc.
#   vmrun.sh make IMAGE SUITE PACKAGE...  builds IMAGE.img and IMAGE.vmlinuz
#   vmrun.sh run IMAGE DIR COMMAND        copies DIR to the guest's /t (in memory), runs COMMAND there, ends with its
#                                         status; 124 when the guest does not answer within LIMIT seconds (900)
# qemu without KVM, so that it runs anywhere. Debian's cloud kernel has NVMe, ext4 and the serial line built in, so
# no initramfs is needed.
set -eu

make() {
	image=$1 suite=$2
	shift 2
	packages=$(echo "$@" | tr ' ' ,)
	release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	# shellcheck disable=SC2016
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $release" | head -n 1)
	[ -n "$mirror" ] || { echo "apt knows no source of this release: run apt-get update" >&2; exit 1; }
	root=$(mktemp -d "$image.XXXXXX")
	trap 'rm -rf "$root" "$image.part"' EXIT
	# The kernel is unpacked, not installed: that would bring the tools for an initramfs.
	# shellcheck disable=SC2016
	mmdebstrap --quiet --variant=apt --aptopt='Acquire::Check-Valid-Until "false"' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --include="iproute2,kmod,busybox-static,$packages" \
		--customize-hook='chroot "$1" sh -ec "
			cd /tmp
			apt-get -qq download \$(apt-get -s --no-install-recommends install linux-image-cloud-amd64 |
				awk \"/^Inst linux-(image|modules|binary|base)-/ { print \\\$2 }\")
			for deb in linux-*.deb; do dpkg-deb --fsys-tarfile \$deb | tar -x --keep-directory-symlink -C /; done
			rm -f *.deb
			ls /lib/modules | xargs -n1 depmod
			apt-get clean
			rm -rf /var/lib/apt/lists/*"' \
		"$suite" "$root" "deb $mirror $suite main"
	mkdir -p "$root/t"
	cat >"$root/vminit" <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount() { busybox mount "$@"; }
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
for dir in /tmp /run /root /t; do mount -t tmpfs tmpfs $dir; done
mkdir -p /run/netns
ip link set lo up
cd /t && modprobe -a virtio_pci virtio_blk tun && tar xf /dev/vda
sh ./.command </dev/null
echo "@@status $?"
echo o >/proc/sysrq-trigger
sleep 60
INIT
	chmod +x "$root/vminit"
	# From 7.x on the packages keep the kernel below /usr/lib/modules.
	find "$root"/boot "$root"/usr/lib/modules -name 'vmlinuz*' 2>/dev/null | head -n 1 | xargs -I{} cp {} "$image.vmlinuz"
	rm -rf "${root:?}/boot"
	size=$(($(du -sm --apparent-size "$root" | cut -f1) * 5 / 4 + 64))
	mke2fs -q -t ext4 -O ^has_journal -m0 -d "$root" "$image.part" "${size}M"
	mv "$image.part" "$image.img"
}

run() {
	image=$1 dir=$2
	shift 2
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	echo "$*" >"$work/.command"
	# The payload is a bare tar on a disk of its own; a disk wants whole mebibytes.
	tar -cf "$work/disk" -C "$dir" . -C "$work" .command
	truncate -s %1M "$work/disk"
	setpriv --pdeathsig TERM timeout --foreground "${LIMIT:-900}" \
		qemu-system-x86_64 -accel tcg -cpu max -m "${MEMORY:-768}" -smp "${CPUS:-1}" -display none \
		-no-reboot -nodefaults -serial stdio -monitor none -kernel "$image.vmlinuz" \
		-append "root=/dev/nvme0n1 rw rootwait init=/vminit console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off tsc=unstable" \
		-drive "file=$image.img,format=raw,if=none,id=root,snapshot=on" -device nvme,drive=root,serial=root \
		-drive "file=$work/disk,format=raw,if=virtio,readonly=on" </dev/null | tr -d '\r' >"$work/log" || true
	grep -v -e '^@@status' -e 'sysrq: Power Off' -e 'reboot: Power down' "$work/log" || true
	status=$(sed -n 's/^@@status //p' "$work/log")
	exit "${status:-124}"
}

"$@"
