# SPDX-License-Identifier: Apache-2.0
# @summary An absolute path of plain characters
type Packetwatch::Path = Pattern[/\A(\/[\w.@+:=-]+)+\/?\z/]
