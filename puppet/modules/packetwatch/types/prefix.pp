# SPDX-License-Identifier: Apache-2.0
# @summary An address or a network, as in 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32
type Packetwatch::Prefix = Variant[Packetwatch::Prefix::V4, Packetwatch::Prefix::V6]
