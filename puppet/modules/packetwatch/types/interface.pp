# SPDX-License-Identifier: Apache-2.0
# @summary The name of an interface, a pattern (* ? []) of names, or default-route
type Packetwatch::Interface = Variant[
  Enum['default-route'],
  Pattern[/\A(?!\.{1,2}\z)[\w.@+-]{1,15}\z/],
  Pattern[/\A(?=.*[*?\[])[\w.@+*?!\[\]-]{1,64}\z/]
]
