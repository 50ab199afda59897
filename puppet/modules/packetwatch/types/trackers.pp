# SPDX-License-Identifier: Apache-2.0
# @summary A power of two from 4096 to 1048576
type Packetwatch::Trackers = Variant[
  Integer[4096, 4096],
  Integer[8192, 8192],
  Integer[16384, 16384],
  Integer[32768, 32768],
  Integer[65536, 65536],
  Integer[131072, 131072],
  Integer[262144, 262144],
  Integer[524288, 524288],
  Integer[1048576, 1048576]
]
