# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require_relative '../puppet_x/packetwatch/fact'

# The class keeps a shorter time limit of its own.
Facter.add(:packetwatch, timeout: 2) do
  confine kernel: 'Linux'
  setcode { PuppetX::Packetwatch::Fact.new.to_h }
end
