# SPDX-License-Identifier: Apache-2.0
# @summary Records every new TCP connection of a host and stops port scanners in the kernel
#
# Installs Packetwatch, writes its settings and keeps its service running. Every setting of packetwatch.conf(5)
# is a parameter: `ports` in the section `[scan]` is `scan_ports`. One that is not given is not written, and what
# the packaged file says holds, or the default.
#
# @example All defaults
#   include packetwatch
#
# @example A canary that only says what it would block
#   class { 'packetwatch':
#     mode  => 'observe',
#     allow => ['192.0.2.10', '2001:db8::/64'],
#   }
#
# @param ensure
#   Absent removes the package with all its settings and state.
# @param package_ensure
#   What to install: `installed`, a version as the repository has it (`0.1.0` for apt, `0.1.0-1` for dnf), or
#   `latest`, the newest that apt or dnf knows of; that apt looks again is then up to you.
# @param package_source
#   A package file on the host to install instead of what the repositories have; dnf takes a URL, too.
# @param package_provider
#   Puppet's provider for the package, where it is not the system's own.
# @param service_ensure
#   Whether the service runs.
# @param service_enable
#   Whether it starts at boot.
# @param manage_repo
#   Sets up the repository at `repo_url`, for apt or dnf.
# @param repo_url
#   Where it is: what `make repo` builds, with the directories `apt` and `dnf`.
# @param repo_key
#   The public key that it is signed with, in ASCII armor.
# @param manage_epel
#   Installs `epel-release` on Enterprise Linux, whose own repositories lack python3-prometheus_client. Without
#   it Packetwatch serves no metrics.
# @param manage_headers
#   Installs the headers of the kernel, where the archive has them. Packetwatch works without; nothing waits for
#   them, and a package that is not to be had is a notice. False where another module declares them.
# @param running_headers
#   Also those of the very kernel that runs.
# @param headers_package
#   The package that goes with the newest kernel.
# @param running_headers_package
#   The package for the running kernel.
# @param scrape_target
#   Exports a `prometheus::scrape_job` (module puppet-prometheus) for this HOST:PORT, where Prometheus reaches
#   the metrics: set `metrics_listen` too.
# @param interface
#   Interfaces to watch, instead of those that other files name. `default-route` stands for every interface that
#   carries a default route.
# @param mode
#   `enforce` drops what comes from a blocked source; `observe` only says what it would drop.
# @param allow
#   Sources that are recorded and never judged or blocked; merged over all levels of Hiera.
# @param block
#   Sources that are always blocked, unless allowed as well; merged over all levels of Hiera.
# @param open_ports
#   Ports that are open though no socket of the host listens, as behind DNAT or IPVS; merged over all levels of
#   Hiera.
# @param socket
#   Unix socket for the commands. A change restarts the service.
# @param state
#   Directory that keeps blocks, manual entries and the last good settings. A change restarts the service.
# @param pin
#   Directory below a bpf file system where maps and links are pinned; empty pins nothing. A change restarts the
#   service.
# @param allow_own
#   Never block the host's own addresses.
# @param allow_gateways
#   Never block the default gateways.
# @param allow_sessions
#   Never block the remote hosts of logged-in sessions.
# @param allow_resolvers
#   Never block the name servers of this host.
# @param allow_time_servers
#   Never block the time servers that systemd-timesyncd, chrony or ntpd are set to use.
# @param allow_puppet_server
#   Never block the Puppet server that puppet.conf names.
# @param scan_ports
#   So many distinct ports within the window make a scan.
# @param scan_window
#   Time within which the ports of a scan are reached, 1s to 24h.
# @param scan_count
#   Which ports count for a scan, and for rules over all ports: every one, or closed ones alone.
# @param block_rules
#   Who reaches so many distinct ports within the window (1s to 7d) is blocked by that rule, for longer each time.
#   They stand instead of those that other files name.
# @param block_honeypot_ports
#   Ports that nobody has a reason to reach: who does is blocked at once; merged over all levels of Hiera.
# @param block_first
#   How long a source is blocked the first time, 1s to 3650d or forever; each time after that, if it is about other ports,
#   doubles it, up to `block_duration`.
# @param block_duration
#   How long a source is blocked at most, 1s to 3650d.
# @param block_forget
#   After so long without a block a source counts as new again, 1s to 3650d.
# @param block_proof
#   What a source must do before a block of it lasts longer than a minute: complete a handshake (`challenge`), or nothing.
# @param block_ipv6_prefix
#   An IPv6 source whose blocks grow is blocked with its network of so many bits, unless somebody in it is allowed; 128: always alone.
# @param block_storm
#   New blocks in a minute above which no more are made until it is over; 0 is no limit.
# @param xdp_mode
#   Where the program sits: in the driver, behind it, or what works.
# @param log_format
#   `auto` is text on a terminal, journal under systemd and json elsewhere.
# @param log_file
#   File that gets every record as a JSON line as well; empty writes none.
# @param log_connections
#   Connections one by one, as sums, or not at all.
# @param log_anonymize
#   Cut addresses in records of connections to /24 and /48.
# @param log_fold_rate
#   Connections a second and interface that are recorded singly for long; the rest is summed. 0 never sums.
# @param log_fold_burst
#   Connections above that rate that are still recorded singly.
# @param log_daily_size
#   What the log may write in a day before it writes only sums, 64K to 1024T; 0 is no limit.
# @param metrics_listen
#   Where Prometheus finds the metrics, instead of where other files say.
# @param table_trackers
#   Sources whose ports are remembered. A change restarts the service.
# @param table_blocks
#   Sources that can be blocked at a time. A change restarts the service.
# @param ring_size
#   Buffer between the kernel and the monitor. A change restarts the service.
# @param loader_headers
#   Headers to compile with: of the running kernel, those of user space (uapi), or what is there (auto). A change
#   restarts the service.
class packetwatch (
  Enum['present', 'absent'] $ensure = 'present',
  String[1] $package_ensure = 'installed',
  Optional[String[1]] $package_source = undef,
  Optional[String[1]] $package_provider = undef,
  Enum['running', 'stopped'] $service_ensure = 'running',
  Variant[Boolean, Enum['mask']] $service_enable = true,
  Boolean $manage_repo = false,
  Optional[Packetwatch::Url] $repo_url = undef,
  Optional[String[1]] $repo_key = undef,
  Boolean $manage_epel = false,
  Boolean $manage_headers = true,
  Boolean $running_headers = false,
  Optional[String[1]] $headers_package = undef,
  Optional[String[1]] $running_headers_package = undef,
  Optional[Pattern[/\A\S+:\d+\z/]] $scrape_target = undef,
  Optional[Variant[Packetwatch::Interface, Array[Packetwatch::Interface]]] $interface = undef,
  Optional[Enum['enforce', 'observe']] $mode = undef,
  Optional[Array[Packetwatch::Prefix]] $allow = undef,
  Optional[Array[Packetwatch::Prefix]] $block = undef,
  Optional[Array[Packetwatch::Port]] $open_ports = undef,
  Optional[Packetwatch::Path] $socket = undef,
  Optional[Packetwatch::Path] $state = undef,
  Optional[Variant[Packetwatch::Path, Enum['']]] $pin = undef,
  Optional[Boolean] $allow_own = undef,
  Optional[Boolean] $allow_gateways = undef,
  Optional[Boolean] $allow_sessions = undef,
  Optional[Boolean] $allow_resolvers = undef,
  Optional[Boolean] $allow_time_servers = undef,
  Optional[Boolean] $allow_puppet_server = undef,
  Optional[Integer[2, 64]] $scan_ports = undef,
  Optional[Packetwatch::Duration] $scan_window = undef,
  Optional[Enum['all', 'closed']] $scan_count = undef,
  Optional[Array[Packetwatch::Rule, 0, 8]] $block_rules = undef,
  Optional[Array[Packetwatch::Port]] $block_honeypot_ports = undef,
  Optional[Variant[Packetwatch::Duration, Enum['forever']]] $block_first = undef,
  Optional[Variant[Packetwatch::Duration, Enum['forever']]] $block_duration = undef,
  Optional[Packetwatch::Duration] $block_forget = undef,
  Optional[Enum['challenge', 'none']] $block_proof = undef,
  Optional[Integer[48, 128]] $block_ipv6_prefix = undef,
  Optional[Integer[0, 1000000]] $block_storm = undef,
  Optional[Enum['auto', 'native', 'generic']] $xdp_mode = undef,
  Optional[Enum['auto', 'text', 'json', 'journal']] $log_format = undef,
  Optional[Variant[Packetwatch::Path, Enum['']]] $log_file = undef,
  Optional[Enum['each', 'summary', 'off']] $log_connections = undef,
  Optional[Boolean] $log_anonymize = undef,
  Optional[Integer[0, 10000000]] $log_fold_rate = undef,
  Optional[Integer[1, 10000000]] $log_fold_burst = undef,
  Optional[Packetwatch::Size] $log_daily_size = undef,
  Optional[Variant[Packetwatch::Listen, Array[Packetwatch::Listen]]] $metrics_listen = undef,
  Optional[Packetwatch::Trackers] $table_trackers = undef,
  Optional[Integer[1024, 1048576]] $table_blocks = undef,
  Optional[Packetwatch::Ring] $ring_size = undef,
  Optional[Enum['auto', 'uapi', 'kernel']] $loader_headers = undef,
) {
  contain packetwatch::install

  if $manage_repo {
    contain packetwatch::repo
  }

  if $ensure == 'present' {
    contain packetwatch::config
    contain packetwatch::service

    Class['packetwatch::config'] -> Class['packetwatch::install'] -> Class['packetwatch::service']
    Class['packetwatch::config'] ~> Class['packetwatch::service']

    if $manage_repo {
      Class['packetwatch::repo'] -> Class['packetwatch::install']
    }

    # Included, not contained, and last: who depends on this class does not wait for headers either.
    if $manage_headers {
      include packetwatch::headers
    }

    if $scrape_target {
      @@prometheus::scrape_job { "packetwatch ${scrape_target}":
        job_name => 'packetwatch',
        targets  => [$scrape_target],
      }
    }
  } else {
    # What the package did not bring, and what rpm leaves.
    file { ['/etc/packetwatch', '/var/lib/packetwatch', '/var/log/packetwatch']:
      ensure  => absent,
      force   => true,
      require => Class['packetwatch::install'],
    }
  }
}
