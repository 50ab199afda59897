# SPDX-License-Identifier: Apache-2.0
"""The Prometheus metrics: a collector over a snapshot of the resident, and the HTTP server.

Names and help stand in metricnames.py. Without prometheus-client the resident runs without metrics.
"""

from __future__ import annotations

import platform
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Callable, NamedTuple, Optional

from packetwatch import __version__
from packetwatch.metricnames import DROP_REASONS, FAMILIES, IGNORED, MALFORMED, METRICS, MODES, Metric
from packetwatch.sinks.ledger import RING, Account

_CONNECTIONS_MAX = 8
_TIMEOUT_S = 5

#: (label values, value)
Sample = tuple[tuple[str, ...], float]


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
        "packetwatch_blocked_sources": [((), s.blocked)],
        "packetwatch_malformed": _named(MALFORMED, s.total.counters.malformed),
        "packetwatch_syns_ignored": _named(IGNORED, s.total.counters.ignored),
        "packetwatch_alerts_lost": [((), s.total.counters.alerts_lost)],
        "packetwatch_table_entries": [((name,), table[0]) for name, table in s.tables.items()],
        "packetwatch_table_capacity": [((name,), table[1]) for name, table in s.tables.items()],
        "packetwatch_evictions": [(("trackers",), s.total.counters.evicted)],
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
    for name in ("syns", "connections", "connections_folded", "connections_would_drop", "scans"):
        found[f"packetwatch_{name}"] = []
    found["packetwatch_connections_dropped"], found["packetwatch_connections_lost"] = [], []
    for interface, account in s.accounts.items():
        for name, values in _of_account(interface, account):
            found[name].append(values)
    return found


def _named(names: Sequence[str], values: Sequence[int]) -> list[Sample]:
    return [((name,), value) for name, value in zip(names, values)]


def _of_account(interface: str, account: Account) -> Iterator[tuple[str, Sample]]:
    c = account.counters
    for i, family in enumerate(FAMILIES):
        labels = (interface, family)
        yield "packetwatch_syns", (labels, c.syns[i])
        yield "packetwatch_connections", (labels, account.recorded(i))
        yield "packetwatch_connections_folded", (labels, c.folded[i])
        yield "packetwatch_connections_would_drop", (labels, c.would_drop[i])
        yield "packetwatch_scans", (labels, c.scans[i])
        for r, reason in enumerate(DROP_REASONS):
            yield "packetwatch_connections_dropped", ((*labels, reason), c.dropped[r * len(FAMILIES) + i])
        for where in {RING, *account.lost}:
            yield "packetwatch_connections_lost", ((*labels, where), account.lost.get(where, (0, 0))[i])


class Collector:
    """What prometheus-client asks at each scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Any]:
        from prometheus_client import core

        kinds: dict[str, Any] = {
            "counter": core.CounterMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "info": core.GaugeMetricFamily,  # the text format has no type of its own for it
        }
        found = samples(self._snapshot())
        for metric in METRICS:
            family = kinds[metric.kind](_exposed(metric), metric.help, labels=metric.labels)
            for labels, value in found[metric.name]:
                family.add_metric(labels, value)
            yield family

    def describe(self) -> Iterable[Any]:
        return ()


def _exposed(metric: Metric) -> str:
    """prometheus-client appends _total to counters; an info metric carries its suffix itself."""
    return f"{metric.name}_info" if metric.kind == "info" else metric.name


class MetricsUnavailable(Exception):
    """prometheus-client is not installed, or an address cannot be listened on."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Exporter:
    """Serves /metrics on each address, with a bounded number of connections of bounded length."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        """Raises MetricsUnavailable without prometheus-client."""
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector
        except ImportError:
            raise MetricsUnavailable(
                "prometheus-client is not installed, so there are no metrics",
                "install python3-prometheus-client (Debian) or python3-prometheus_client (EPEL),"
                " or set metrics.listen = off",
            ) from None
        self._registry = CollectorRegistry()
        self._registry.register(Collector(snapshot))  # type: ignore[arg-type]
        ProcessCollector(registry=self._registry)
        self._servers: dict[tuple[str, int], _Server] = {}

    def listen(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Listens on exactly these addresses; raises MetricsUnavailable and keeps what was."""
        opened: dict[tuple[str, int], _Server] = {}
        try:
            for address in addresses:
                if address not in self._servers:
                    opened[address] = _Server(address, self._registry)
        except OSError as fault:
            for server in opened.values():
                server.stop()
            where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
            raise MetricsUnavailable(
                f"metrics address {where}: {fault.strerror}",
                "choose another with metrics.listen (--metrics-listen HOST:PORT), or turn it off",
            ) from None
        for address in [a for a in self._servers if a not in addresses]:
            self._servers.pop(address).stop()
        for server in opened.values():
            server.start()
        self._servers.update(opened)

    def addresses(self) -> list[tuple[str, int]]:
        return list(self._servers)

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], registry: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.registry = registry
        self._room = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._thread: Optional[threading.Thread] = None
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look for our own name: with no network yet the resolver would hold up the start."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def start(self) -> None:
        self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S
    server_version = "packetwatch"
    sys_version = ""

    def do_GET(self) -> None:
        from prometheus_client import exposition

        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404, "only /metrics is here")
            return
        body = exposition.generate_latest(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", exposition.CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""
