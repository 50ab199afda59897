# SPDX-License-Identifier: Apache-2.0
"""The files that name the servers of this host: which there are, and whether one of them has changed.

What they mean is servers.py's. Reads only, a bounded part of a bounded number of files.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Optional

from packetwatch import rules, servers
from packetwatch.servers import Clocks, Named

_FILE_BYTES = 64 * 1024
_FILES_MAX = 64
_DIRECTORY_MAX = 4096
#: What decides what a name stands for, besides whatever answers.
_LOOK_UP = ("/etc/hosts", "/etc/resolv.conf")
_SYSTEMD = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd")
_CHRONY = ("/etc/chrony/chrony.conf", "/etc/chrony.conf")
_NTP = ("/etc/ntp.conf", "/etc/ntpsec/ntp.conf", "/run/ntp.conf.dhcp", "/run/ntpsec/ntp.conf.dhcp")
_NTPSEC = ("/etc/ntp.d", "/etc/ntpsec/ntp.d")
_PUPPET = ("/etc/puppetlabs/puppet/puppet.conf", "/etc/puppet/puppet.conf")
_AGENT = ("/opt/puppetlabs/bin/puppet", "/opt/puppetlabs/puppet/bin/puppet", "/usr/bin/puppet")

Stamp = Optional[tuple[int, int, int, int]]


class Reading(NamedTuple):
    """What the files said."""

    named: tuple[Named, ...] = ()
    stamps: Mapping[str, Stamp] = {}  #: of every path that was looked at
    unread: tuple[tuple[str, str, str], ...] = ()  #: (path, reason of rules.py, fault)


def read(reasons: frozenset[str], root: str = "") -> Reading:
    """Reads what these reasons to allow need; ``root`` is put before every path."""
    files = _Files(root)
    found = [named for reason in servers.SWITCHES if reason in reasons for named in _READERS[reason](files, reason)]
    for path in _LOOK_UP:
        files.stamp(path)
    return Reading(tuple(found), files.stamps, tuple(files.unread))


def changed(reading: Reading, root: str = "") -> bool:
    """Whether another reading may say something else. Looks at the files and opens none."""
    return any(_stamp(root + path) != stamp for path, stamp in reading.stamps.items())


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class _Files:
    """Reads files, and remembers at which it looked."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.stamps: dict[str, Stamp] = {}
        self.unread: list[tuple[str, str, str]] = []
        self._opened = 0

    def stamp(self, path: str) -> Stamp:
        """As it was before it was read: a change in between is one for the next look."""
        return self.stamps.setdefault(path, _stamp(self.root + path))

    def text(self, path: str, reason: str) -> Optional[str]:
        """The head of a regular file; None where there is none, or one that must not be read."""
        self._opened += 1
        if self._opened > _FILES_MAX:
            return None
        self.stamp(path)
        try:
            return self._head(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as fault:
            self.unread.append((path, reason, fault.strerror or str(fault)))
            return None

    def _head(self, path: str) -> Optional[str]:
        """A pipe that nobody writes to must not block it."""
        descriptor = os.open(self.root + path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            head = os.read(descriptor, _FILE_BYTES)
        finally:
            os.close(descriptor)
        whole = head if len(head) < _FILE_BYTES else head.rpartition(b"\n")[0]  # half a name is another name
        return whole.decode(errors="replace")

    def matching(self, pattern: str) -> list[str]:
        """Paths by name, of a path whose last part is a pattern."""
        directory, _, last = pattern.rpartition("/")
        if len(self.stamps) >= 2 * _FILES_MAX or "\0" in pattern:
            return []
        self.stamp(directory)
        try:
            with os.scandir(self.root + directory) as entries:
                names = [entry.name for entry in itertools.islice(entries, _DIRECTORY_MAX)]
        except OSError:
            return []
        chosen = (name for name in names if name[0] != "." and fnmatch.fnmatchcase(name, last))
        return [f"{directory}/{name}" for name in sorted(chosen)]


def _resolvers(files: _Files, reason: str) -> Iterator[Named]:
    path = "/etc/resolv.conf"
    hosts = servers.resolv_conf(files.text(path, reason) or "")
    if servers.has_stub(hosts):
        real = "/run/systemd/resolve/resolv.conf"
        for host in servers.resolv_conf(files.text(real, reason) or ""):
            yield Named(host, reason, real)
    for host in hosts:
        yield Named(host, reason, path)


def _time_servers(files: _Files, reason: str) -> Iterator[Named]:
    for host, file in servers.timesyncd_conf(_timesyncd(files, reason)):
        yield Named(host, reason, file)
    state = "/run/systemd/netif/state"
    for host in servers.networkd_state(files.text(state, reason) or ""):
        yield Named(host, reason, state)
    yield from _clocks(files, reason, _CHRONY, servers.chrony_conf)
    ntpsec = [path for directory in _NTPSEC for path in files.matching(f"{directory}/*.conf")]
    yield from _clocks(files, reason, (*_NTP, *ntpsec), servers.ntp_conf)


def _timesyncd(files: _Files, reason: str) -> Iterator[tuple[str, str]]:
    """The first main file there is; drop-ins of all directories by name, each name once."""
    for directory in _SYSTEMD:
        text = files.text(f"{directory}/timesyncd.conf", reason)
        if text is not None:
            yield f"{directory}/timesyncd.conf", text
            break
    drop_ins: dict[str, str] = {}
    for directory in _SYSTEMD:
        for path in files.matching(f"{directory}/timesyncd.conf.d/*.conf"):
            drop_ins.setdefault(path.rpartition("/")[2], path)
    for name in sorted(drop_ins):
        text = files.text(drop_ins[name], reason)
        if text is not None:
            yield drop_ins[name], text


def _clocks(
    files: _Files, reason: str, paths: tuple[str, ...], parse: Callable[[str], Clocks]
) -> Iterator[Named]:
    """These files and all that they include, each once."""
    ahead, seen = list(paths), set(paths)
    while ahead:
        path = ahead.pop(0)
        text = files.text(path, reason)
        if text is None:
            continue
        said = parse(text)
        for host in said.hosts:
            yield Named(host, reason, path)
        patterns = [*said.include, *(f"{each}/*.conf" for each in said.confdir)]
        patterns += [f"{each}/*.sources" for each in said.sourcedir]
        paths_only = (pattern for pattern in patterns if pattern.startswith("/") and pattern.isascii())
        more = [found for pattern in paths_only for found in files.matching(pattern)]
        ahead += [each for each in dict.fromkeys(more) if each not in seen]
        seen.update(more)


def _puppet_server(files: _Files, reason: str) -> Iterator[Named]:
    installed = any([files.stamp(path) for path in _AGENT])
    for path in _PUPPET:
        text = files.text(path, reason)
        if text is not None:
            for host in servers.puppet_conf(text) or (["puppet"] if installed else []):
                yield Named(host, reason, path)


_READERS: Mapping[str, Callable[[_Files, str], Iterator[Named]]] = {
    rules.RESOLVER: _resolvers, rules.TIME_SERVER: _time_servers, rules.PUPPET_SERVER: _puppet_server,
}
