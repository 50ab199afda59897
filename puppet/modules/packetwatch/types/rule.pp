# SPDX-License-Identifier: Apache-2.0
# @summary So many distinct ports within a window, closed ones alone (1 to 16) or all (1 to 64), as in 5:closed:10m or 20:all:60s; scan:closed is a scan of closed ports, off (alone) none
type Packetwatch::Rule = Pattern[/\A(off|scan:closed)\z/, /\A(([1-9]|1[0-6]):closed|([1-9]|[1-5]\d|6[0-4]):all):(?=\d)(\d{1,9}d)?(\d{1,9}h)?(\d{1,9}m)?(\d{1,9}s)?\z/]
