# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require 'spec_helper'

%w[allow block].each do |setting|
  describe "packetwatch::#{setting}" do
    let(:facts) { Systems.facts('Debian', '12') }
    let(:title) { 'monitoring' }
    let(:params) { { prefixes: ['192.0.2.10', '2001:db8::/64'] } }
    let(:file) { "#{DIRECTORY}/60-puppet-#{setting}-monitoring.conf" }

    it { is_expected.to compile.with_all_deps }
    it { is_expected.to contain_class('packetwatch') }
    it { is_expected.to contain_file(file).that_comes_before('Package[packetwatch]').that_notifies('Service[packetwatch]') }

    it 'writes its entries and nothing else' do
      is_expected.to contain_file(file).with_content(<<~TEXT)
        #{HEADER}
        [packetwatch]
        #{setting} = 192.0.2.10
        #{setting} = 2001:db8::/64
      TEXT
    end

    context 'named by its only entry' do
      let(:title) { '2001:db8::/64' }
      let(:params) { {} }
      let(:file) { "#{DIRECTORY}/60-puppet-#{setting}-2001_db8_64.conf" }

      it { is_expected.to contain_file(file).with_content(/^#{setting} = #{title}$/) }
    end

    context 'named by a path' do
      let(:title) { '../../etc/passwd $(id)' }

      it { is_expected.to contain_file("#{DIRECTORY}/60-puppet-#{setting}-.._.._etc_passwd_id_.conf") }
    end

    context 'where its name is no entry and there are none' do
      let(:params) { {} }

      it { is_expected.to compile.and_raise_error(/prefixes/) }
    end

    context 'where the class is absent' do
      let(:pre_condition) { "class { 'packetwatch': ensure => absent }" }

      it { is_expected.to compile.with_all_deps }
      it { is_expected.not_to contain_file(file) }
    end
  end
end
