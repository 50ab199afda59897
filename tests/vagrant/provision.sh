#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# provision.sh PACKAGE: installs it by the Puppet module that is in it. Brings Puppet where that is missing: the
# distribution's own on Debian, Ubuntu 24.04 and Fedora. Ubuntu 22.04 has one that is too old, and Enterprise Linux
# none: there it is OpenVox, and PACKETWATCH_OPENVOX is the URL of Vox Pupuli's release package for that system, as in
# openvox8-release-el-9.noarch.rpm.
set -eu
package=$1
export PATH="$PATH:/opt/puppetlabs/bin" DEBIAN_FRONTEND=noninteractive

install_puppet() {
	# shellcheck disable=SC1091
	. /etc/os-release
	case $ID$VERSION_ID in
	debian* | ubuntu2[4-9]*) apt-get -q update && apt-get -qy install puppet-agent ;;
	fedora*) dnf -qy install puppet ;;
	*)
		[ -n "${PACKETWATCH_OPENVOX:-}" ] || {
			echo "$PRETTY_NAME has no Puppet 7.23 or newer: PACKETWATCH_OPENVOX=URL of Vox Pupuli's release package" >&2
			exit 1
		}
		case $package in
		*.deb)
			wget -qO /tmp/openvox.deb "$PACKETWATCH_OPENVOX"
			apt-get -qy install /tmp/openvox.deb && apt-get -q update && apt-get -qy install openvox-agent
			;;
		*.rpm) dnf -qy install "$PACKETWATCH_OPENVOX" && dnf -qy install openvox-agent ;;
		esac
		;;
	esac
}

# Ends with 2 when something was changed.
apply() {
	puppet apply --color=false --modulepath "$tree/usr/share/packetwatch/puppet/modules" --detailed-exitcodes -e "
		class { 'packetwatch': package_source => '$package', package_ensure => '$version', manage_epel => true }"
}

command -v puppet >/dev/null || install_puppet
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
case $package in
*.deb)
	version=$(dpkg-deb --field "$package" Version)
	dpkg-deb --extract "$package" "$tree"
	;;
*.rpm)
	version=$(rpm --query --package --queryformat '%{VERSION}-%{RELEASE}' "$package")
	rpm2cpio "$package" | (cd "$tree" && cpio --quiet -idm)
	;;
esac
apply || [ $? = 2 ]
apply || { echo "a second run of Puppet changed something again" >&2; exit 1; }
