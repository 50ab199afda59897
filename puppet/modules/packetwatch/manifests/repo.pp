# SPDX-License-Identifier: Apache-2.0
# @summary The repository that has the package, trusted by its key alone
# @api private
class packetwatch::repo {
  unless $packetwatch::repo_url and $packetwatch::repo_key {
    fail('packetwatch::manage_repo needs packetwatch::repo_url and packetwatch::repo_key')
  }

  case $facts['os']['family'] {
    'Debian': {
      $list = '/etc/apt/sources.list.d/packetwatch.sources'
      $key = '/etc/apt/keyrings/packetwatch.asc'
      $text = @("SOURCES")
        Types: deb
        URIs: ${packetwatch::repo_url}/apt
        Suites: ./
        Signed-By: ${key}
        | SOURCES

      # Whenever apt does not know what is asked for: also a version that came out since it last looked.
      if $packetwatch::ensure == 'present' {
        $wanted = $packetwatch::package_ensure ? {
          /\A\d/  => "packetwatch=${packetwatch::package_ensure}",
          default => 'packetwatch',
        }
        $only_ours = "-o Dir::Etc::SourceList=${list} -o Dir::Etc::SourceParts=- -o APT::Get::List-Cleanup=0"
        $read = "apt-get -q ${only_ours} update"
        exec { 'packetwatch: read the repository':
          # On a fresh image apt may know nothing at all, and ours needs packages of the system's.
          command  => "apt-cache show python3-bpfcc || apt-get -q update; ${read}",
          unless   => "apt-cache show '${wanted}'",
          provider => 'shell',
          path     => ['/usr/bin', '/bin'],
          require  => File[$list, $key],
        }
      }
    }
    'RedHat': {
      $list = '/etc/yum.repos.d/packetwatch.repo'
      $key = '/etc/pki/rpm-gpg/RPM-GPG-KEY-packetwatch'
      $text = @("REPO")
        [packetwatch]
        name=Packetwatch
        baseurl=${packetwatch::repo_url}/dnf
        enabled=1
        gpgcheck=1
        repo_gpgcheck=1
        gpgkey=file://${key}
        metadata_expire=15m
        | REPO
    }
    default: {
      fail("packetwatch::manage_repo knows Debian's and Red Hat's families, and not ${facts['os']['family']}")
    }
  }

  $ensure = $packetwatch::ensure ? {
    'present' => 'file',
    default   => 'absent',
  }

  file {
    default:
      ensure => $ensure,
      owner  => 'root',
      group  => 'root',
      mode   => '0644',
      ;
    $key:
      content => $packetwatch::repo_key,
      ;
    $list:
      content => $text,
      ;
  }
}
