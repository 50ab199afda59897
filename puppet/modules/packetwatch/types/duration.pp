# SPDX-License-Identifier: Apache-2.0
# @summary Numbers with d, h, m or s, as in 60s, 1h or 2h30m
type Packetwatch::Duration = Pattern[/\A(?=\d)(\d{1,9}d)?(\d{1,9}h)?(\d{1,9}m)?(\d{1,9}s)?\z/]
