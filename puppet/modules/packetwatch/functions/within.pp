# SPDX-License-Identifier: Apache-2.0
# @summary Fails, naming the parameter, unless a duration or size lies in its range
# @param name of the parameter
# @param text its value
# @param least the smallest allowed
# @param most the largest allowed
# @return nothing
# @api private
function packetwatch::within(String[1] $name, String[1] $text, String[1] $least, String[1] $most) >> Undef {
  $value = packetwatch::amount($text)
  if $value < packetwatch::amount($least) or $value > packetwatch::amount($most) {
    fail("packetwatch::${name}: ${text} is out of range, ${least} to ${most}")
  }
}
