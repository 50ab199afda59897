# SPDX-License-Identifier: Apache-2.0
# @summary A settings file with entries of one list
# @param setting the list
# @param prefixes its entries
# @api private
define packetwatch::list (
  Enum['allow', 'block'] $setting,
  Array[Packetwatch::Prefix] $prefixes,
) {
  include packetwatch

  # A name that config.pp takes for Puppet's own.
  $file = "60-puppet-${regsubst($title, '[^\w.-]+', '_', 'G')}.conf"

  if $packetwatch::ensure == 'present' {
    file { "/etc/packetwatch/packetwatch.conf.d/${file}":
      ensure       => file,
      owner        => 'root',
      group        => 'root',
      mode         => '0644',
      validate_cmd => packetwatch::check($file),
      content      => epp('packetwatch/settings.conf.epp', {
          'sections' => { 'packetwatch' => { $setting => $prefixes } },
      }),
      before       => Class['packetwatch::install'],
      notify       => Class['packetwatch::service'],
    }
  }
}
