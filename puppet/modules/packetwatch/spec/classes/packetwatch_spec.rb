# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require 'spec_helper'

describe 'packetwatch' do
  Systems.all.each do |system, facts|
    context "on #{system}" do
      let(:facts) { facts }
      let(:debian) { facts[:os]['family'] == 'Debian' }
      let(:headers) do
        { 'Debian' => 'linux-headers-amd64', 'Ubuntu' => 'linux-headers-generic' }.fetch(facts[:os]['name'], 'kernel-devel')
      end
      let(:running) { "#{debian ? 'linux-headers' : 'kernel-devel'}-#{facts[:kernelrelease]}" }

      it 'has the system it says' do
        expect([facts[:os]['name'], facts[:os]['release']['major']].join(' ')).to eq system
      end

      context 'with no parameters' do
        it { is_expected.to compile.with_all_deps }
        it { is_expected.to contain_package('packetwatch').with_ensure('installed') }
        it { is_expected.to contain_service('packetwatch').with(ensure: 'running', enable: true) }
        it { is_expected.to contain_package(headers) }
        it { is_expected.not_to contain_package(running) }
        it { is_expected.not_to contain_package('epel-release') }
        it { is_expected.not_to contain_class('packetwatch::repo') }
        it { is_expected.to contain_file(SETTINGS).with_content(/\A# [^\n]*\n\z/) }

        it 'makes what it makes, and nothing else' do
          resources = catalogue.resources.map(&:ref).grep(/\A(File|Package|Service|Exec|Notify|Cron|User|Group)/)
          expect(resources).to contain_exactly(
            'File[/etc/packetwatch]', "File[#{DIRECTORY}]", "File[#{SETTINGS}]", 'Package[packetwatch]', 'Service[packetwatch]',
            "Package[#{headers}]"
          )
        end
      end

      context 'with all that it can manage besides' do
        let(:params) do
          {
            running_headers: true, manage_epel: true, package_ensure: '0.2.0', manage_repo: true,
            repo_url: 'https://packages.example/packetwatch', repo_key: "KEY\n"
          }
        end
        let(:list) { "/etc/#{debian ? 'apt/sources.list.d/packetwatch.sources' : 'yum.repos.d/packetwatch.repo'}" }
        let(:key) { debian ? '/etc/apt/keyrings/packetwatch.asc' : '/etc/pki/rpm-gpg/RPM-GPG-KEY-packetwatch' }

        it { is_expected.to compile.with_all_deps }
        it { is_expected.to contain_package('packetwatch').with_ensure('0.2.0') }
        it { is_expected.to contain_package(running) }
        it { is_expected.to contain_package(headers) }
        it { is_expected.to contain_file(key).with_content("KEY\n").that_comes_before('Package[packetwatch]') }
        it { is_expected.to contain_file(list).with_content(/#{key}$/).that_comes_before('Package[packetwatch]') }
        it { is_expected.to contain_file(list).with_content(%r{https://packages.example/packetwatch/#{debian ? 'apt' : 'dnf'}$}) }

        it 'trusts nothing that is not signed' do
          text = catalogue.resource('file', list)[:content]
          expect(text).to debian ? match(/^Signed-By: /) : include("\ngpgcheck=1\n", "\nrepo_gpgcheck=1\n")
        end

        it 'has apt look again for a version that it does not know' do
          if debian
            is_expected.to contain_exec('packetwatch: read the repository')
              .with_unless("apt-cache show 'packetwatch=0.2.0'").that_comes_before('Package[packetwatch]')
          else
            is_expected.to have_exec_resource_count(0)
          end
        end

        it 'has EPEL on Enterprise Linux only' do
          if facts[:os]['name'] == 'Rocky'
            is_expected.to contain_package('epel-release').that_comes_before('Package[packetwatch]')
          else
            is_expected.not_to contain_package('epel-release')
          end
        end
      end

      context 'when absent' do
        let(:params) { { ensure: 'absent', mode: 'observe' } }

        it { is_expected.to compile.with_all_deps }
        it { is_expected.to contain_package('packetwatch').with_ensure('purged').that_comes_before('File[/etc/packetwatch]') }
        it { is_expected.to contain_file('/etc/packetwatch').with(ensure: 'absent', force: true) }
        it { is_expected.to contain_file('/var/lib/packetwatch').with(ensure: 'absent', force: true) }
        it { is_expected.not_to contain_service('packetwatch') }
        it { is_expected.not_to contain_file(SETTINGS) }
        it { is_expected.not_to contain_package(headers) }
      end
    end
  end

  # What follows does not depend on the system.

  let(:facts) { Systems.facts('Debian', '12') }


  it 'writes the settings before the package, and owned as the package has them' do
    is_expected.to contain_file('/etc/packetwatch').with(ensure: 'directory', owner: 'root', group: 'root', mode: '0755')
    is_expected.to contain_file(DIRECTORY).with(ensure: 'directory', owner: 'root', group: 'root', mode: '0755')
    is_expected.to contain_file(SETTINGS).with(owner: 'root', group: 'root', mode: '0644').that_comes_before('Package[packetwatch]')
    is_expected.to contain_file(DIRECTORY).that_comes_before('Package[packetwatch]')
  end

  it 'starts the service after the package, and tells it of changed settings' do
    is_expected.to contain_package('packetwatch').that_comes_before('Service[packetwatch]')
    is_expected.to contain_file(SETTINGS).that_notifies('Service[packetwatch]')
    is_expected.to contain_file(DIRECTORY).that_notifies('Service[packetwatch]')
  end

  it 'reloads, and restarts only where the monitor asks for it' do
    command = catalogue.resource('service', 'packetwatch')[:restart]
    expect(command).to start_with('answer=$(/usr/bin/packetwatch reload -o json) || exit;').and include('systemctl restart packetwatch')
  end

  it 'purges what the lists once wrote, and no other file' do
    ignored = catalogue.resource('file', DIRECTORY)[:ignore]
    purged = ->(name) { ignored.none? { |pattern| File.fnmatch(pattern, name) } }
    expect(%w[60-puppet-allow-gone.conf 60-puppet-block-gone.conf]).to all(satisfy(&purged))
    expect(%w[00-first.conf 50-puppet.conf 60-local.conf 60-p.conf 60-prod.conf 60-puppeteer.conf 60-puppet.conf 60.conf 6.conf 61-x.conf 99-last.conf a.conf].select(&purged)).to eq []
  end

  it 'lets nothing wait for headers' do
    headers = catalogue.resource('class', 'packetwatch::headers')
    dependents = catalogue.to_ral.relationship_graph.dependents(catalogue.to_ral.resource('Package[linux-headers-amd64]'))
    expect(headers).not_to be_nil
    expect(dependents.map(&:ref)).not_to include('Service[packetwatch]', 'Package[packetwatch]')
  end

  context 'where the archive has no headers' do
    let(:facts) { super().merge(kernelrelease: '6.18.44') }
    let(:params) { { running_headers: true } }

    around { |example| Tools.with(Tools::ALL.to_h { |tool, _| [tool, 'linux-headers-amd64'] }) { example.run } }

    it 'goes on without' do
      is_expected.to compile.with_all_deps
      is_expected.to contain_package('linux-headers-6.18.44').with_ensure('absent')
      is_expected.to contain_package('linux-headers-amd64').with_ensure('installed')
    end
  end

  context 'where others manage the headers too' do
    let(:pre_condition) { "package { 'linux-headers-amd64': ensure => latest }" }

    it { is_expected.to compile.with_all_deps }
    it { is_expected.to contain_package('linux-headers-amd64').with_ensure('latest') }
  end

  context 'with no headers wanted' do
    let(:params) { { manage_headers: false, running_headers: true } }

    it { is_expected.to have_package_resource_count(1) }
  end

  context 'with a pinned version from a file' do
    let(:params) { { package_ensure: '0.1.0-1', package_source: '/root/packetwatch.deb', package_provider: 'apt' } }

    it { is_expected.to contain_package('packetwatch').with(ensure: '0.1.0-1', source: '/root/packetwatch.deb', provider: 'apt') }
  end

  context 'with a service that is to be left alone' do
    let(:params) { { service_ensure: 'stopped', service_enable: 'mask' } }

    it { is_expected.to contain_service('packetwatch').with(ensure: 'stopped', enable: 'mask') }
  end

  context 'with settings' do
    let(:params) do
      {
        interface: ['eth0', 'enp*'], mode: 'observe', allow: ['192.0.2.1', '2001:db8::/32'], block: [], allow_own: false, scan_ports: 5,
        metrics_listen: ':9773', log_file: '', block_duration: 'forever', open_ports: [8443, '30000-32767'], scan_count: 'closed',
        block_rules: ['5:closed:10m', '20:all:60s'], block_honeypot_ports: [23], block_first: '2m', block_forget: '7d', block_storm: 0,
        block_proof: 'none', block_ipv6_prefix: 56
      }
    end

    it 'has a line for each value, and takes back what earlier files say of lists that it stands for' do
      is_expected.to contain_file(SETTINGS).with_content(<<~TEXT)
        #{HEADER}
        [packetwatch]
        interface =
        interface = eth0
        interface = enp*
        mode = observe
        allow = 192.0.2.1
        allow = 2001:db8::/32
        open_ports = 8443
        open_ports = 30000-32767

        [allow]
        own = no

        [scan]
        ports = 5
        count = closed

        [block]
        rules =
        rules = 5:closed:10m
        rules = 20:all:60s
        honeypot_ports = 23
        first = 2m
        duration = forever
        forget = 7d
        proof = none
        ipv6_prefix = 56
        storm = 0

        [log]
        file =

        [metrics]
        listen =
        listen = :9773
      TEXT
    end
  end

  context 'with several levels of Hiera' do
    let(:hiera_config) { File.expand_path('../hiera/hiera.yaml', __dir__) }

    it 'adds up the lists of addresses and ports' do
      is_expected.to contain_file(SETTINGS).with_content(<<~TEXT)
        #{HEADER}
        [packetwatch]
        mode = observe
        allow = 192.0.2.20
        allow = 192.0.2.10
        block = 198.51.100.0/24
        block = 203.0.113.7
        open_ports = 8443
        open_ports = 30000-32767

        [block]
        honeypot_ports = 23
        honeypot_ports = 2323
      TEXT
    end
  end

  {
    { scan_window: '25h' } => /packetwatch::scan_window: 25h is out of range, 1s to 24h/,
    { scan_window: '0s' } => /packetwatch::scan_window: 0s is out of range/,
    { block_duration: '3651d' } => /packetwatch::block_duration: 3651d is out of range, 1s to 3650d/,
    { block_first: '0s' } => /packetwatch::block_first: 0s is out of range, 1s to 3650d/,
    { block_forget: '3651d' } => /packetwatch::block_forget: 3651d is out of range, 1s to 3650d/,
    { block_rules: ['3:closed:60s', '5:all:8d'] } => /packetwatch::block_rules: 8d is out of range, 1s to 7d/,
    { block_rules: ['17:closed:60s'] } => /block_rules/,
    { block_rules: ["3:closed:60s\nfirst = 1s"] } => /block_rules/,
    { open_ports: ['80 443'] } => /open_ports/,
    { log_daily_size: '1K' } => /packetwatch::log_daily_size: 1K is out of range, 64K to 1024T/,
    { manage_repo: true } => /manage_repo needs packetwatch::repo_url and packetwatch::repo_key/,
    { mode: "observe\n[scan]" } => /mode/,
    { log_file: "/tmp/x\nports = 2" } => /log_file/,
    { allow: ['192.0.2.1 203.0.113.1'] } => /allow/,
    { interface: 'eth0 eth1' } => /interface/,
  }.each do |given, message|
    context "with #{given}" do
      let(:params) { given }

      it { is_expected.to compile.and_raise_error(message) }
    end
  end

  context 'with a scrape target' do
    let(:params) { { scrape_target: 'web.example:9773', metrics_listen: ':9773' } }
    let(:pre_condition) { 'define prometheus::scrape_job(String $job_name, Array[String] $targets) {}' }

    it 'exports a job' do
      expect(exported_resources).to contain_prometheus__scrape_job('packetwatch web.example:9773')
        .with(job_name: 'packetwatch', targets: ['web.example:9773'])
    end
  end

  context 'on a system that nobody has thought of' do
    let(:facts) { super().merge(os: { 'name' => 'Plan9', 'family' => 'Plan9', 'release' => { 'major' => '4' } }) }

    it { is_expected.to compile.with_all_deps }
    it { is_expected.to have_package_resource_count(1) }
  end
end
