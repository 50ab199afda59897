# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require 'spec_helper'

describe 'packetwatch::obtainable' do
  { 'Debian' => [true, 'dpkg-query', 'apt-cache'], 'Red Hat' => [false, 'rpm', 'dnf'] }.each do |family, (dpkg, installed, archive)|
    context "on #{family}'s family" do
      before do
        allow(File).to receive(:executable?).and_call_original
        allow(File).to receive(:executable?).with('/usr/bin/dpkg-query').and_return(dpkg)
      end

      around { |example| Tools.with(installed => 'here', archive => 'there') { example.run } }

      it { is_expected.to run.with_params('here').and_return('installed') }
      it { is_expected.to run.with_params('there').and_return('installed') }

      it 'says that a package is gone, and does not ask for it' do
        notices = []
        allow(Puppet).to receive(:notice) { |text| notices << text }
        is_expected.to run.with_params('gone').and_return('absent')
        expect(notices).to contain_exactly(/package gone is not to be had/)
      end
    end
  end
end
