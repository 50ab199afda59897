# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require 'facter'
require 'rspec-puppet'
require 'rspec-puppet-facts'
require 'tmpdir'
require_relative '../lib/puppet_x/packetwatch/fact'

DIRECTORY = '/etc/packetwatch/packetwatch.conf.d'
SETTINGS = "#{DIRECTORY}/50-puppet.conf".freeze
HEADER = "# Managed by Puppet: changes are undone. Settings by hand go into another file of this directory.\n"

# Every system of metadata.json: as facterdb has it, or made from an older release where facterdb lacks it.
module Systems
  extend RspecPuppetFacts

  def self.all
    RspecPuppetFacts.meta_supported_os.flat_map do |os|
      os['operatingsystemrelease'].map { |release| ["#{os['operatingsystem']} #{release}", facts(os['operatingsystem'], release)] }
    end.to_h
  end

  def self.facts(name, release)
    only = { 'os.name' => name, 'os.hardware' => 'x86_64' }
    return renamed(FacterDB.get_facts(only), release) if FacterDB.get_facts(only.merge('os.release.major' => release)).empty?

    on_supported_os(supported_os: [{ 'operatingsystem' => name, 'operatingsystemrelease' => [release] }]).values.first
  end

  # The newest release that there is, under another number.
  def self.renamed(found, release)
    facts = Marshal.load(Marshal.dump(found.max_by { |each| Gem::Version.new(each[:os]['release']['full']) }))
    facts[:os]['release'] = { 'full' => release, 'major' => release }
    facts.merge(RspecPuppetFacts.common_facts)
  end
end

# Stand-ins for the tools that know packages. Each answers for the packages named, or for all.
module Tools
  ALL = %w[dpkg-query apt-cache rpm dnf].to_h { |tool| [tool, '*'] }.freeze

  def self.with(tools)
    Dir.mktmpdir do |directory|
      tools.each do |tool, package|
        File.write("#{directory}/#{tool}", "#!/bin/sh\nfor last; do :; done\ncase $last in #{package}) echo installed ;; *) exit 1 ;; esac\n", perm: 0o755)
      end
      before = ENV.fetch('PATH')
      ENV['PATH'] = "#{directory}:#{before}"
      yield
    ensure
      ENV['PATH'] = before
    end
  end
end

RSpec.configure do |config|
  config.module_path = File.expand_path('../..', __dir__)
  config.setup_fixtures = false
  config.facter_implementation = :rspec
  config.mock_with :rspec
  config.strict_variables = true
  config.default_facter_version = '4.10.0'
  # Deferred values are resolved here as on an agent.
  config.around { |example| Tools.with(Tools::ALL) { example.run } }
end
