# SPDX-License-Identifier: Apache-2.0
# @summary A port, or a range as in 8000-8100
type Packetwatch::Port = Variant[Integer[1, 65535], Pattern[/\A[1-9]\d{0,4}(-[1-9]\d{0,4})?\z/]]
