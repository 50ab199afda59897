# SPDX-License-Identifier: Apache-2.0
# @summary A duration in seconds, or a size in bytes
# @param text as a setting has it
# @return the whole number
# @api private
function packetwatch::amount(Variant[Packetwatch::Duration, Packetwatch::Size] $text) >> Integer {
  $units = {
    '' => 1,
    'd' => 86400, 'h' => 3600, 'm' => 60, 's' => 1,
    'K' => 1024, 'M' => 1048576, 'G' => 1073741824, 'T' => 1099511627776,
  }
  $text.split(/(?<=\D)/).reduce(0) |$sum, $part| {
    $found = $part.match(/\A(\d+)(\D?)\z/)
    $sum + Integer($found[1], 10) * $units[$found[2]]
  }
}
