# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require 'spec_helper'

describe 'packetwatch::amount' do
  {
    '1s' => 1, '90s' => 90, '2h30m' => 9000, '1d1h1m1s' => 90_061, '09m' => 540,
    '0' => 0, '65536' => 65_536, '64K' => 65_536, '4M' => 4_194_304, '1G' => 1 << 30, '1024T' => 1 << 50
  }.each do |text, value|
    it { is_expected.to run.with_params(text).and_return(value) }
  end
  ['', 's', '1x', '1m1h', '-1s', '1.5h', 'forever', '1k'].each { |text| it { is_expected.to run.with_params(text).and_raise_error(ArgumentError) } }
end
