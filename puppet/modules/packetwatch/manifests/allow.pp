# SPDX-License-Identifier: Apache-2.0
# @summary Sources that are recorded and never judged or blocked
#
# Adds to what packetwatch::allow lists, and to what other files on the host say. Taken out of the catalog, it
# is gone from the host with the next run.
#
# @param prefixes addresses and networks
#
# @example
#   packetwatch::allow { 'monitoring':
#     prefixes => ['192.0.2.10', '2001:db8::/64'],
#   }
define packetwatch::allow (
  Variant[Packetwatch::Prefix, Array[Packetwatch::Prefix]] $prefixes = $title,
) {
  packetwatch::list { "allow-${title}":
    setting  => 'allow',
    prefixes => [$prefixes].flatten,
  }
}
