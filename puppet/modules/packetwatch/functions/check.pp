# SPDX-License-Identifier: Apache-2.0
# @summary The validate_cmd for a file of packetwatch.conf.d
#
# Lists add up and paths may clash over all files, so the candidate is checked among the others, in a
# copy of the directory. Before the package is there, nothing can check it.
#
# @param name of the file
# @return a shell command; % stands for the candidate
# @api private
function packetwatch::check(Pattern[/\A[\w.-]+\z/] $name) >> String[1] {
  join([
      '[ ! -x /usr/bin/packetwatch ] || {',
      'all=$(mktemp -d) && trap \'rm -rf "$all"\' EXIT',
      '&& cp -r /etc/packetwatch/packetwatch.conf* "$all" && touch "$all/packetwatch.conf"',
      "&& cp % \"\$all/packetwatch.conf.d/${name}\"",
      '&& /usr/bin/packetwatch check --config "$all/packetwatch.conf"; }',
    ], ' ')
}
