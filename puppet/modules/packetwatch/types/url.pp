# SPDX-License-Identifier: Apache-2.0
# @summary Where a repository is: https, http or file
type Packetwatch::Url = Pattern[/\A(https?|file):\/\/[\w.@+:=\/\[\]~%-]+\z/]
