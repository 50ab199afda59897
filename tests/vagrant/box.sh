#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# box.sh ROOT MOUNTPOINT BOX: makes a Vagrant box for libvirt of a copy of ROOT, a Debian with kernel, sshd and sudo.
# Started in a mount namespace of its own, which therefore holds the copy. No partitions and no boot loader: the box
# says which kernel to boot. The key that opens it is in it.
set -eu
root=$1 mountpoint=$2 box=$3
mount -t tmpfs -o mode=0755 tmpfs "$mountpoint"
cd "$mountpoint"
mkdir upper work copy box
mount -t overlay -o "lowerdir=$root,upperdir=upper,workdir=work" overlay copy

ssh-keygen -q -t ed25519 -N '' -C vagrant -f box/key
rm -f copy/etc/dpkg/dpkg.cfg.d/* # what kept documentation out of the root would look like missing files
echo box >copy/etc/hostname
echo '127.0.0.1 localhost box' >copy/etc/hosts
: >copy/etc/resolv.conf
chroot copy useradd --create-home --shell /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >copy/etc/sudoers.d/vagrant
install -Dm600 -o 1000 -g 1000 box/key.pub copy/home/vagrant/.ssh/authorized_keys
chown 1000:1000 copy/home/vagrant/.ssh
printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >copy/etc/systemd/network/eth0.network
systemctl --quiet --root=copy enable systemd-networkd

cp copy/boot/vmlinuz-* box/vmlinuz
cp copy/boot/initrd.img-* box/initrd
mke2fs -q -t ext4 -m0 -d copy disk 2G
qemu-img convert -c -O qcow2 disk box/box.img
echo '{ "provider": "libvirt", "format": "qcow2", "virtual_size": 2 }' >box/metadata.json
cat >box/Vagrantfile <<'RUBY'
Vagrant.configure("2") do |config|
  config.ssh.private_key_path = File.join(__dir__, "key")
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.join(__dir__, "vmlinuz")
    libvirt.initrd = File.join(__dir__, "initrd")
    libvirt.cmd_line = "root=/dev/vda rw net.ifnames=0 console=ttyS0 mitigations=off tsc=unstable"
  end
end
RUBY
tar -cf "$box.part" -C box .
mv "$box.part" "$box"
