# SPDX-License-Identifier: Apache-2.0
# @summary An IPv4 address or network, as in 192.0.2.7 or 192.0.2.0/24
type Packetwatch::Prefix::V4 = Pattern[
  /\A((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\/(3[0-2]|[12]?\d))?\z/
]
