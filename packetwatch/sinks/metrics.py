# SPDX-License-Identifier: Apache-2.0
"""The Prometheus metrics: samples of a snapshot of the resident, and the addresses where scrapes find them.

Names and help stand in metricnames.py, the HTTP server in scrapes.py. Without prometheus-client the
resident runs without metrics.
"""

from __future__ import annotations

import platform
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from packetwatch import __version__
from packetwatch.metricnames import DROP_REASONS, FAMILIES, IGNORED, MALFORMED, MODES
from packetwatch.sinks.ledger import RING, Account

_BACKLOG = 16
_STOP_S = 5
PRELOAD_S = 3
_IP_FREEBIND, _IPV6_FREEBIND = (socket.IPPROTO_IP, 15), (socket.IPPROTO_IPV6, 78)  # Linux' in.h and in6.h

#: (label values, value)
Sample = tuple[tuple[str, ...], float]


_BY_FAMILY = (
    "syns", "connections", "connections_folded", "connections_would_drop", "probes", "probes_untold", "acks", "scans"
)


class Snapshot(NamedTuple):
    """All that the metrics tell, at one moment."""

    accounts: Mapping[str, Account]  #: by interface
    total: Account
    attached: Mapping[str, bool]  #: every wanted interface
    modes: Mapping[str, str]  #: interface -> XDP mode
    mode: str
    blocks: Mapping[str, int]  #: reason -> made so far
    blocked: int
    tables: Mapping[str, tuple[int, int]]  #: name -> (entries, capacity)
    sinks: Mapping[str, tuple[int, int]]  #: name -> (records written, refused)
    reload_ok: bool
    reload_time_s: float
    program: str


def samples(s: Snapshot) -> dict[str, list[Sample]]:
    """Every metric of METRICS with its samples; counters are there from the start, at 0."""
    found: dict[str, list[Sample]] = {
        "packetwatch_blocks": [((reason,), made) for reason, made in s.blocks.items()],
        "packetwatch_blocks_refused": [((), s.total.counters.refused)],
        "packetwatch_blocks_frozen": [((), s.total.counters.frozen)],
        "packetwatch_sources_proven": [((), s.total.counters.proven)],
        "packetwatch_sources_contested": [((), s.total.counters.contested)],
        "packetwatch_blocked_sources": [((), s.blocked)],
        "packetwatch_malformed": _named(MALFORMED, s.total.counters.malformed),
        "packetwatch_syns_ignored": _named(IGNORED, s.total.counters.ignored),
        "packetwatch_alerts_lost": [((), s.total.counters.alerts_lost)],
        "packetwatch_table_entries": [((name,), table[0]) for name, table in s.tables.items()],
        "packetwatch_table_capacity": [((name,), table[1]) for name, table in s.tables.items()],
        "packetwatch_evictions": [
            (("trackers",), s.total.counters.evicted),
            (("suspects",), s.total.counters.suspects_evicted),
        ],
        "packetwatch_interface_attached": [((name,), on) for name, on in s.attached.items()],
        "packetwatch_interface": [((name, mode), 1) for name, mode in s.modes.items()],
        "packetwatch_mode": [((mode,), mode == s.mode) for mode in MODES],
        "packetwatch_records_written": [((name,), sink[0]) for name, sink in s.sinks.items()],
        "packetwatch_records_refused": [((name,), sink[1]) for name, sink in s.sinks.items()],
        "packetwatch_config_last_reload_successful": [((), s.reload_ok)],
        "packetwatch_config_last_reload_success_timestamp_seconds": [((), s.reload_time_s)],
        "packetwatch_build": [((__version__, s.program, platform.python_version()), 1)],
        "conn_count": [((), sum(s.total.counters.syns))],
    }
    for name in _BY_FAMILY:
        found[f"packetwatch_{name}"] = []
    found["packetwatch_connections_dropped"], found["packetwatch_connections_lost"] = [], []
    places = [RING, *list(s.sinks)[:1]]  # the first log is the one that decides what is lost
    for interface, account in s.accounts.items():
        for name, values in _of_account(interface, account, places):
            found[name].append(values)
    return found


def _named(names: Sequence[str], values: Sequence[int]) -> list[Sample]:
    return [((name,), value) for name, value in zip(names, values)]


def _of_account(interface: str, account: Account, places: Sequence[str]) -> Iterator[tuple[str, Sample]]:
    c = account.counters
    for i, family in enumerate(FAMILIES):
        labels = (interface, family)
        yield "packetwatch_syns", (labels, c.syns[i])
        yield "packetwatch_connections", (labels, account.recorded(i))
        yield "packetwatch_connections_folded", (labels, c.folded[i])
        yield "packetwatch_connections_would_drop", (labels, c.would_drop[i])
        yield "packetwatch_probes", (labels, c.probes[i])
        yield "packetwatch_probes_untold", (labels, c.probes_untold[i])
        yield "packetwatch_acks", (labels, c.acks[i])
        yield "packetwatch_scans", (labels, c.scans[i])
        for r, reason in enumerate(DROP_REASONS):
            yield "packetwatch_connections_dropped", ((*labels, reason), c.dropped[r * len(FAMILIES) + i])
        for where in {*places, *account.lost}:
            yield "packetwatch_connections_lost", ((*labels, where), account.lost.get(where, (0, 0))[i])


class MetricsUnavailable(Exception):
    """prometheus-client is not installed, or an address cannot be listened on."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Exporter:
    """Listens for scrapes."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        """Raises MetricsUnavailable without prometheus-client."""
        if find_spec("prometheus_client") is None:
            raise MetricsUnavailable(
                "prometheus-client is not installed, so there are no metrics",
                "install python3-prometheus-client (Debian) or python3-prometheus_client (EPEL),"
                " or set metrics.listen = off",
            )
        self._samples = lambda: samples(snapshot())
        self._listeners: dict[tuple[str, int], _Listener] = {}
        self._serving = False

    def listen(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Listens on exactly these, answers from serve() on; raises MetricsUnavailable and keeps what was."""
        opened: dict[tuple[str, int], _Listener] = {}
        try:
            for address in addresses:
                if address not in self._listeners:
                    opened[address] = _Listener(address, self._samples)
        except OSError as fault:
            for listener in opened.values():
                listener.stop()
            where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
            raise MetricsUnavailable(
                f"metrics address {where}: {fault.strerror}",
                "choose another with metrics.listen (--metrics-listen HOST:PORT), or turn it off",
            ) from None
        for address in [a for a in self._listeners if a not in addresses]:
            self._listeners.pop(address).stop()
        for listener in opened.values() if self._serving else ():
            listener.start()
        self._listeners.update(opened)

    def serve(self) -> None:
        """When privileges have been dropped: capabilities are a thread's own, and it takes what is there."""
        self._serving = True
        for listener in self._listeners.values():
            listener.start()

    def addresses(self) -> list[tuple[str, int]]:
        return list(self._listeners)

    def close(self) -> None:
        for listener in self._listeners.values():
            listener.stop()


class _Listener:
    """Holds an address from the start; what answers there is imported after the start, which it would slow down."""

    def __init__(self, address: tuple[str, int], samples: Callable[[], Mapping[str, list[Sample]]]) -> None:
        """Raises OSError where it cannot listen."""
        self._samples = samples
        self._socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        try:
            # The service is there before the network: an address may come later, or move here.
            self._socket.setsockopt(*(_IPV6_FREEBIND if ":" in address[0] else _IP_FREEBIND), 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self._end, self._told = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.close()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._told.close()
        self._socket.close()

    def _serve(self) -> None:
        """An upgrade of Python or prometheus-client beneath us finds the modules in memory, soon after the start.

        Not by serve_forever(), which wakes up twice a second.
        """
        waits = select.poll()
        waits.register(self._socket, select.POLLIN)
        waits.register(self._told, select.POLLIN)
        waits.poll(PRELOAD_S * 1000)
        from packetwatch.sinks import scrapes

        self._socket.setblocking(False)  # who has connected may be gone when asked for
        server = scrapes.Server(self._socket, scrapes.registry(self._samples))
        while self._told.fileno() not in dict(waits.poll()):
            server.handle_request()
