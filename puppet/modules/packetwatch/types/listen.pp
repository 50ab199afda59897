# SPDX-License-Identifier: Apache-2.0
# @summary ADDRESS:PORT, [ADDRESS]:PORT for IPv6, :PORT for every address, or off
type Packetwatch::Listen = Variant[
  Enum['off'],
  Pattern[/\A(localhost|(\d{1,3}\.){3}\d{1,3}|\[[\h:.]{2,45}\])?:([1-9]\d{0,3}|[1-5]\d{4}|6([0-4]\d{3}|5([0-4]\d\d|5([0-2]\d|3[0-5]))))\z/]
]
