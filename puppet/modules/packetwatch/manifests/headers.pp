# SPDX-License-Identifier: Apache-2.0
# @summary Kernel headers where the archive has them. Packetwatch compiles without, so nothing waits for them
# @api private
class packetwatch::headers {
  $running = $packetwatch::running_headers ? {
    true    => $packetwatch::running_headers_package,
    default => undef,
  }

  [$packetwatch::headers_package, $running].filter |$name| { $name =~ NotUndef }.each |$name| {
    unless defined(Package[$name]) {
      package { $name:
        ensure => Deferred('packetwatch::obtainable', [$name]),
      }
    }
  }
}
