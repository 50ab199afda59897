# SPDX-License-Identifier: Apache-2.0
# @summary Bytes, or a number with K, M, G or T, as in 64K, 4M or 1G
type Packetwatch::Size = Pattern[/\A\d{1,12}[KMGT]?\z/]
