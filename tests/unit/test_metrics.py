# SPDX-License-Identifier: Apache-2.0
"""The metrics: every row has its samples, docs/metrics.md has every row, and scrapes are answered where they should."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from packetwatch.kernel import ZERO
from packetwatch.metricnames import METRICS
from packetwatch.sinks import metrics
from packetwatch.sinks.ledger import Account

ROOT = pathlib.Path(__file__).resolve().parents[2]
ACCOUNT = Account(
    ZERO._replace(
        syns=(11, 3), recorded=(7, 3), folded=(1, 0), dropped=(0, 0, 1, 0, 1, 0), lost=(1, 0),
        probes=(4, 2), probes_untold=(1, 0), acks=(8, 2), frozen=9, evicted=5, suspects_evicted=6,
        proven=4, contested=3,
    ),
    {"ring": (1, 0), "journal": (2, 0)},
)
SNAPSHOT = metrics.Snapshot(
    accounts={"eth0": ACCOUNT},
    total=ACCOUNT,
    attached={"eth0": True, "eth1": False},
    modes={"eth0": "native"},
    mode="enforce",
    blocks={"scan": 0, "manual": 2},
    blocked=2,
    tables={"blocks": (0, 65536)},
    sinks={"journal": (8, 2)},
    reload_ok=True,
    reload_time_s=1.5,
    program="0123v1",
)
TERMS = ("connections", "connections_folded", "connections_dropped", "connections_lost")


@pytest.fixture
def exporter():
    made = metrics.Exporter(lambda: SNAPSHOT)
    made.serve()
    yield made
    made.close()


def free_address(host="127.0.0.1"):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as link:
        link.bind((host, 0))
        return link.getsockname()[:2]


def scrape(address, path="/metrics"):
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    with urllib.request.urlopen(f"http://{host}:{address[1]}{path}", timeout=5) as answer:
        return answer.read().decode()


def refused(address):
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as link:
        return link.connect_ex(address) != 0


def test_every_metric_has_samples():
    assert set(metrics.samples(SNAPSHOT)) == {metric.name for metric in METRICS}


def test_labels_are_as_named():
    found = metrics.samples(SNAPSHOT)
    for metric in METRICS:
        assert all(len(values) == len(metric.labels) for values, _ in found[metric.name]), metric.name


def test_the_terms_add_up():
    found = metrics.samples(SNAPSHOT)
    terms = sum(value for name in TERMS for _, value in found[f"packetwatch_{name}"])
    assert terms == sum(value for _, value in found["packetwatch_syns"]) == 14


def test_no_source_address_is_a_label():
    assert not {"source", "src_ip", "address"} & {label for metric in METRICS for label in metric.labels}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_scrape(exporter, host):
    address = free_address(host)
    exporter.listen([address])
    text = scrape(address)
    assert 'packetwatch_connections_total{family="ipv4",interface="eth0"} 5.0' in text
    assert 'packetwatch_probes_total{family="ipv4",interface="eth0"} 4.0' in text
    assert 'packetwatch_probes_untold_total{family="ipv6",interface="eth0"} 0.0' in text
    assert 'packetwatch_acks_total{family="ipv6",interface="eth0"} 2.0' in text
    assert 'packetwatch_connections_dropped_total{family="ipv4",interface="eth0",reason="challenge"} 1.0' in text
    assert "packetwatch_sources_proven_total 4.0" in text and "packetwatch_sources_contested_total 3.0" in text
    assert 'packetwatch_evictions_total{table="suspects"} 6.0' in text and "packetwatch_blocks_frozen_total 9.0" in text
    assert "process_resident_memory_bytes" in text and "conn_count_total 14.0" in text
    assert scrape(address, "/") == text or "packetwatch_mode" in scrape(address, "/")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        scrape(address, "/secret")


def test_addresses_follow_the_settings(exporter):
    one, two = free_address(), free_address()
    exporter.listen([one])
    scrape(one)
    exporter.listen([two])
    assert refused(one) and scrape(two)
    exporter.listen([])
    assert refused(two) and exporter.addresses() == []


def test_a_stop_before_the_first_scrape(exporter):
    address = free_address()
    exporter.listen([address])
    exporter.close()
    assert refused(address)
    exporter.listen([])


def test_an_address_in_use_changes_nothing(exporter):
    kept, fresh = free_address(), free_address()
    exporter.listen([kept])
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(metrics.MetricsUnavailable, match="in use"):
            exporter.listen([fresh, other.getsockname()])
    assert exporter.addresses() == [kept] and scrape(kept) and refused(fresh)


def test_idle_connections_do_not_pile_up(exporter):
    address = free_address()
    exporter.listen([address])
    scrape(address)
    idle = [socket.create_connection(address) for _ in range(12)]
    for link in idle:
        link.settimeout(2)
    sent_away = [link for link in idle[8:] if link.recv(1) == b""]
    assert len(sent_away) == 4
    for link in idle:
        link.close()


def test_a_start_does_not_import_the_server():
    code = "import sys; from packetwatch import daemon; print({'http', 'ssl', 'email'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def documented(metric):
    """As in docs/metrics.md."""
    name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.kind, "")
    kind = "gauge" if metric.kind == "info" else metric.kind
    return f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"


def test_the_page_has_every_metric():
    """It fails with the table as it should be."""
    page = (ROOT / "docs/metrics.md").read_text()
    table = "\n".join(documented(metric).replace("|  |", "| |") for metric in METRICS)
    assert f"| --- | --- | --- | --- |\n{table}\n\n" in page, table
