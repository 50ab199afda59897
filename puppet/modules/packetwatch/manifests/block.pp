# SPDX-License-Identifier: Apache-2.0
# @summary Sources that are always blocked, unless they are allowed as well
#
# Adds to what packetwatch::block lists, and to what other files on the host say. Taken out of the catalog, it
# is gone from the host with the next run.
#
# @param prefixes addresses and networks
#
# @example
#   packetwatch::block { 'monitoring':
#     prefixes => ['192.0.2.10', '2001:db8::/64'],
#   }
define packetwatch::block (
  Variant[Packetwatch::Prefix, Array[Packetwatch::Prefix]] $prefixes = $title,
) {
  packetwatch::list { "block-${title}":
    setting  => 'block',
    prefixes => [$prefixes].flatten,
  }
}
