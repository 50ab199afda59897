# SPDX-License-Identifier: Apache-2.0
# @summary The package
# @api private
class packetwatch::install {
  if $packetwatch::manage_epel and $facts['os']['family'] == 'RedHat' and $facts['os']['name'] != 'Fedora' {
    unless defined(Package['epel-release']) {
      package { 'epel-release':
        ensure => 'installed',
      }
    }
    Package['epel-release'] -> Package['packetwatch']
  }

  $ensure = $packetwatch::ensure ? {
    'present' => $packetwatch::package_ensure,
    default   => 'purged',
  }

  package { 'packetwatch':
    ensure   => $ensure,
    source   => $packetwatch::package_source,
    provider => $packetwatch::package_provider,
  }
}
