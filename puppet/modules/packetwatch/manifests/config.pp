# SPDX-License-Identifier: Apache-2.0
# @summary Directories and settings, written before the package, so that its first start has them
# @api private
class packetwatch::config {
  if $packetwatch::scan_window {
    packetwatch::within('scan_window', $packetwatch::scan_window, '1s', '24h')
  }
  $packetwatch::block_rules.then |$rules| {
    $rules.filter |$rule| { $rule =~ /\A\d/ }.each |$rule| {
      packetwatch::within('block_rules', $rule.split(':')[2], '1s', '7d')
    }
  }
  if $packetwatch::block_first and $packetwatch::block_first != 'forever' {
    packetwatch::within('block_first', $packetwatch::block_first, '1s', '3650d')
  }
  if $packetwatch::block_duration and $packetwatch::block_duration != 'forever' {
    packetwatch::within('block_duration', $packetwatch::block_duration, '1s', '3650d')
  }
  if $packetwatch::block_forget {
    packetwatch::within('block_forget', $packetwatch::block_forget, '1s', '3650d')
  }
  if $packetwatch::log_daily_size and packetwatch::amount($packetwatch::log_daily_size) != 0 {
    packetwatch::within('log_daily_size', $packetwatch::log_daily_size, '64K', '1024T')
  }

  # Of these lists the values add up over files. What is said here stands instead of what is said before,
  # and an empty value takes that back; allow, block and the lists of ports add to the entries of others.
  $interface = $packetwatch::interface.then |$names| { [''] + [$names].flatten }
  $block_rules = $packetwatch::block_rules.then |$rules| { [''] + $rules }
  $metrics_listen = $packetwatch::metrics_listen.then |$addresses| { [''] + [$addresses].flatten }

  file { '/etc/packetwatch':
    ensure => directory,
    owner  => 'root',
    group  => 'root',
    mode   => '0755',
  }

  # What packetwatch::allow and packetwatch::block once wrote must not stay when they are taken out of the
  # catalog: of the files 60-puppet-* those go that are not declared, and no others: Ruby's globs know
  # no "not this word", so each letter of it has its own.
  $own = '60-puppet-'
  $others = Integer[0, length($own) - 1].map |$n| { "${own[0, $n]}[!${own[$n]}]*" }

  file { '/etc/packetwatch/packetwatch.conf.d':
    ensure       => directory,
    owner        => 'root',
    group        => 'root',
    mode         => '0755',
    recurse      => true,
    recurselimit => 1,
    purge        => true,
    ignore       => $others,
  }

  file { '/etc/packetwatch/packetwatch.conf.d/50-puppet.conf':
    ensure       => file,
    owner        => 'root',
    group        => 'root',
    mode         => '0644',
    validate_cmd => packetwatch::check('50-puppet.conf'),
    content      => epp('packetwatch/settings.conf.epp', {
        'sections' => {
          'packetwatch' => {
            'interface'  => $interface,
            'mode'       => $packetwatch::mode,
            'allow'      => $packetwatch::allow,
            'block'      => $packetwatch::block,
            'open_ports' => $packetwatch::open_ports,
            'socket'     => $packetwatch::socket,
            'state'      => $packetwatch::state,
            'pin'        => $packetwatch::pin,
          },
          'allow'       => {
            'own'           => $packetwatch::allow_own,
            'gateways'      => $packetwatch::allow_gateways,
            'sessions'      => $packetwatch::allow_sessions,
            'resolvers'     => $packetwatch::allow_resolvers,
            'time_servers'  => $packetwatch::allow_time_servers,
            'puppet_server' => $packetwatch::allow_puppet_server,
          },
          'scan'        => {
            'ports'  => $packetwatch::scan_ports,
            'window' => $packetwatch::scan_window,
            'count'  => $packetwatch::scan_count,
          },
          'block'       => {
            'rules'          => $block_rules,
            'honeypot_ports' => $packetwatch::block_honeypot_ports,
            'first'          => $packetwatch::block_first,
            'duration'       => $packetwatch::block_duration,
            'forget'         => $packetwatch::block_forget,
            'proof'          => $packetwatch::block_proof,
            'ipv6_prefix'    => $packetwatch::block_ipv6_prefix,
            'storm'          => $packetwatch::block_storm,
          },
          'xdp'         => {
            'mode' => $packetwatch::xdp_mode,
          },
          'log'         => {
            'format'      => $packetwatch::log_format,
            'file'        => $packetwatch::log_file,
            'connections' => $packetwatch::log_connections,
            'anonymize'   => $packetwatch::log_anonymize,
            'fold_rate'   => $packetwatch::log_fold_rate,
            'fold_burst'  => $packetwatch::log_fold_burst,
            'daily_size'  => $packetwatch::log_daily_size,
          },
          'metrics'     => {
            'listen' => $metrics_listen,
          },
          'table'       => {
            'trackers' => $packetwatch::table_trackers,
            'blocks'   => $packetwatch::table_blocks,
          },
          'ring'        => {
            'size' => $packetwatch::ring_size,
          },
          'loader'      => {
            'headers' => $packetwatch::loader_headers,
          },
        },
    }),
  }
}
