# SPDX-License-Identifier: Apache-2.0
# @summary A power of two in bytes from 64K to 64M
type Packetwatch::Ring = Enum['64K', '128K', '256K', '512K', '1M', '2M', '4M', '8M', '16M', '32M', '64M']
