# SPDX-License-Identifier: Apache-2.0
"""The words for what is counted: label values, in the order of the enums in bpf/, and metric names."""

from __future__ import annotations

from typing import NamedTuple

FAMILIES = ("ipv4", "ipv6")  #: enum family
DROP_REASONS = ("scan", "list", "challenge")  #: enum drop_reason

#: enum malformed
MALFORMED = (
    "truncated",
    "ip_header",
    "ip_options",
    "tcp_header",
    "fragment",
    "vlan_depth",
    "extension_depth",
    "extension_order",
    "routing_header",
)

#: enum ignored
IGNORED = ("not_local", "martian", "foreign_mac", "source_route")

#: The maps whose fill is reported.
TABLES = ("trackers", "suspects", "blocks", "local", "sources")

MODES = ("enforce", "observe")


class Metric(NamedTuple):
    """One row of the metric list; docs/metrics.md is tested against it."""

    name: str
    kind: str  #: counter, gauge or info
    labels: tuple[str, ...]
    help: str


_IF = ("interface", "family")

METRICS = (
    Metric("packetwatch_syns", "counter", _IF, "New connections (SYNs) judged."),
    Metric("packetwatch_connections", "counter", _IF, "New connections recorded singly."),
    Metric("packetwatch_connections_folded", "counter", _IF, "New connections counted in summary records."),
    Metric("packetwatch_connections_dropped", "counter", _IF + ("reason",), "New connections dropped in the kernel."),
    Metric("packetwatch_connections_lost", "counter", _IF + ("where",), "New connections whose record was lost."),
    Metric("packetwatch_connections_would_drop", "counter", _IF, "Observe mode: let through, though enforce drops."),
    Metric("packetwatch_scans", "counter", _IF, "Port scans recognised."),
    Metric("packetwatch_blocks", "counter", ("reason",), "Blocks made."),
    Metric("packetwatch_blocks_frozen", "counter", (), "Blocks not made in a storm of them (block.storm)."),
    Metric("packetwatch_blocks_refused", "counter", (), "Blocks refused since the block table was full."),
    Metric("packetwatch_blocked_sources", "gauge", (), "Sources and prefixes blocked now."),
    Metric("packetwatch_probes", "counter", _IF, "Segments of no connection: FIN, NULL, XMAS and the like."),
    Metric("packetwatch_probes_untold", "counter", _IF, "Probes that came too fast for a record of each."),
    Metric("packetwatch_acks", "counter", _IF, "Bare acknowledgments that no connection has: ACK and window scans."),
    Metric("packetwatch_sources_proven", "counter", (), "Sources that have answered a challenge."),
    Metric("packetwatch_sources_contested", "counter", (), "Sources that have given too many wrong answers to it."),
    Metric("packetwatch_malformed", "counter", ("reason",), "Frames that could not be walked."),
    Metric("packetwatch_syns_ignored", "counter", ("reason",), "SYNs that this host itself would not take."),
    Metric("packetwatch_alerts_lost", "counter", (), "Scans whose records had no room; blocks that were made stand."),
    Metric("packetwatch_table_entries", "gauge", ("table",), "Entries of a kernel table."),
    Metric("packetwatch_table_capacity", "gauge", ("table",), "Entries that a kernel table can hold."),
    Metric("packetwatch_evictions", "counter", ("table",), "Live entries replaced by newer ones."),
    Metric("packetwatch_interface_attached", "gauge", ("interface",), "1 where a wanted interface is watched, else 0."),
    Metric("packetwatch_interface", "info", ("interface", "mode"), "XDP mode of a watched interface."),
    Metric("packetwatch_mode", "gauge", ("mode",), "1 for the mode in force, 0 for the other."),
    Metric("packetwatch_records_written", "counter", ("sink",), "Records a sink has written."),
    Metric("packetwatch_records_refused", "counter", ("sink",), "Records a sink could not write."),
    Metric("packetwatch_config_last_reload_successful", "gauge", (), "1 if the last start or reload took effect."),
    Metric(
        "packetwatch_config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "Unix time of the last settings that were taken.",
    ),
    Metric("packetwatch_build", "info", ("version", "program", "python"), "Version of Packetwatch."),
    Metric("conn_count", "counter", (), "Alias of the origin: all new connections judged."),
)
