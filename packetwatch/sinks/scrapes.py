# SPDX-License-Identifier: Apache-2.0
"""The HTTP server that answers scrapes. Imported after the start: with prometheus-client it takes a tenth of a
second, and 7 MB. What the metrics are, and where it listens, is metrics.py's.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, core, exposition

from packetwatch.metricnames import METRICS, Metric

_CONNECTIONS_MAX = 8
_TIMEOUT_S = 5

#: An info metric: the text format has no type of its own for it.
_KINDS: dict[str, Any] = {
    "counter": core.CounterMetricFamily,
    "gauge": core.GaugeMetricFamily,
    "info": core.GaugeMetricFamily,
}

#: Label values and value, by the metric's name.
Samples = Mapping[str, Iterable[tuple[tuple[str, ...], float]]]


class Collector:
    """What prometheus-client asks at each scrape."""

    def __init__(self, samples: Callable[[], Samples]) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Any]:
        found = self._samples()
        for metric in METRICS:
            family = _KINDS[metric.kind](_exposed(metric), metric.help, labels=metric.labels)
            for labels, value in found[metric.name]:
                family.add_metric(labels, value)
            yield family

    def describe(self) -> Iterable[Any]:
        return ()


def _exposed(metric: Metric) -> str:
    """prometheus-client appends _total to counters; an info metric carries its suffix itself."""
    return f"{metric.name}_info" if metric.kind == "info" else metric.name


def registry(samples: Callable[[], Samples]) -> CollectorRegistry:
    """Our metrics and those of the process."""
    made = CollectorRegistry()
    made.register(Collector(samples))  # type: ignore[arg-type]
    ProcessCollector(registry=made)
    return made


class Server(ThreadingHTTPServer):
    """Serves /metrics on a listening socket, with a bounded number of connections of bounded length."""

    daemon_threads = True

    def __init__(self, link: socket.socket, registry: CollectorRegistry) -> None:
        """Without HTTPServer's bind, which looks for our own name: the resolver may not answer."""
        super().__init__(link.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = link
        self.server_name, self.server_port = link.getsockname()[:2]
        self.registry = registry
        self._room = threading.BoundedSemaphore(_CONNECTIONS_MAX)

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
    server: Server
    timeout = _TIMEOUT_S
    server_version = "packetwatch"
    sys_version = ""

    def do_GET(self) -> None:
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
