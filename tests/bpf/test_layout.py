# SPDX-License-Identifier: Apache-2.0
"""The layouts and enums that C and Python share, asked of the compiler that compiles the kernel half."""

from __future__ import annotations

import struct
import sys

import pytest

from packetwatch import address, detection, event, kernel, libbpf, marks, metricnames, program, rules
from tests import frames as f
from tests.bpf import harness

#: struct of C -> (format of Python, bytes before it, fields in the format's order).
STRUCTS = {
    "settings": (
        program.SETTINGS, 0,
        "window_ns block_ns first_ns open_ns forget_ns keep_ns suspect_ns fold_interval_ns fold_burst_ns seed "
        "lists_generation network_mask wakeup_mask ports observe generation count_closed storm proof network_bits "
        "rule_count "
        + " ".join(f"rules[{i}].{name}" for i in range(program.RULES) for name in kernel.KernelRule._fields)
    ),
    "attachment": (program.ATTACHMENT, 0, "fold_ns probe_ns last_ns ifindex id flags mac"),
    "prefix_key": (program.PREFIX_KEY, 0, "length network"),
    "source": (program.SOURCE, 0, "until_ns dropped flags length"),
    "block": (program.BLOCK, 0, "until_ns since_ns dropped attachment length challenges"),
    "fold_key": (program.FOLD_KEY, 0, "saddr dport attachment generation"),
    "fold": (program.FOLD, 0, "count since_ns"),
    "offender": (
        program.OFFENDER, 0,
        "until_ns proven_ns prover ports count doublings unanswered wrong life contested"
    ),
    "looks": (program.LOOKS, 0, "left until_ns"),
    "cookies": (program.COOKIES, 0, "keys[0] keys[1] life"),
    "client": (program.CLIENT, 0, "first_ns last_ns"),
    "connection_event": (event.PROBE, 8, "boot_ns saddr daddr sport dport attachment flags tcp_flags"),
    "alert_event": (
        event.ALERT, 8,
        "boot_ns until_ns saddr daddr attachment flags block port_count length rule evidence ports closed"
    ),
}
_SINGLE = [1] * (len(kernel.Counters._fields) - len(kernel._WIDTHS))
COUNTERS = {name: width for name, width in zip(kernel.Counters._fields, (*kernel._WIDTHS, *_SINGLE))}
CONSTANTS = {
    **{f"FAMILY_{name.upper()}": i for i, name in enumerate(metricnames.FAMILIES)},
    **{f"DROP_{name.upper()}": i for i, name in enumerate(metricnames.DROP_REASONS)},
    **{f"MALFORMED_{name.upper()}": i for i, name in enumerate(metricnames.MALFORMED)},
    **{f"IGNORED_{name.upper()}": i for i, name in enumerate(metricnames.IGNORED)},
    "FAMILIES": len(metricnames.FAMILIES),
    "DROP_REASONS": len(metricnames.DROP_REASONS),
    "MALFORMED_REASONS": len(metricnames.MALFORMED),
    "IGNORED_REASONS": len(metricnames.IGNORED),
    "SOURCE_OWN": rules.OWN,
    "SOURCE_ALLOW": rules.ALLOW,
    "SOURCE_BLOCK": rules.BLOCK,
    "ATTACHMENT_USED": program.ATTACHMENT_USED,
    "ATTACHMENT_LOOPBACK": program.ATTACHMENT_LOOPBACK,
    "ATTACHMENT_MAC_TEST": program.ATTACHMENT_MAC_TEST,
    "EVENT_IPV6": event.IPV6,
    "EVENT_ALLOWED": event.ALLOWED,
    "EVENT_WOULD_DROP": event.WOULD_DROP,
    "EVENT_OPEN": event.OPEN,
    "EVENT_CLOSED": event.CLOSED,
    "EVENT_SCAN": event.SCAN,
    "ALERT_NO_BLOCK": event.NO_BLOCK,
    "ALERT_BLOCKED": event.BLOCKED,
    "ALERT_REFUSED": event.REFUSED,
    "ALERT_FROZEN": event.FROZEN,
    **{f"EVIDENCE_{name.upper()}": i for i, name in enumerate(event.EVIDENCE)},
    "RULE_NONE": event.NO_RULE,
    "RULE_HONEYPOT": event.HONEYPOT,
    "SLOT_TIME": (1 << 64) - detection.TICK_NS,
    "SUSPECT_SLOTS": detection.SUSPECT_SLOTS,
    "DOUBLINGS": detection.DOUBLINGS,
    "DOUBLINGS_FOREVER": detection.DOUBLINGS_FOREVER,
    "UNPROVEN_NS": detection.UNPROVEN_NS,
    "RULES": program.RULES,
    "CLIENTS": program.CLIENTS,
    "OFFENDERS": program.OFFENDERS,
    "PORT_BYTES": program.PORT_BYTES,
    "ADDRESS_BITS": address.BITS,
    "SCAN_SLOTS": event.SCAN_SLOTS,
    "ATTACHMENTS": program.ATTACHMENTS,
    "ATTACHMENT_CELLS": program.ATTACHMENT_CELLS,
    "ATTACHMENT_PROBES": program.ATTACHMENT_PROBES,
    "PREFIXES": program.PREFIXES,
    "FOLDS": program.FOLDS,
    "MARKS": marks.COUNT,
    "sizeof(struct marks)": marks.SIZE,
    "sizeof(struct recent)": 24,
    "sizeof(struct counters)": kernel.COUNTER_WORDS * 8,
    "sizeof(struct tracker_set)": harness.TRACKER_SET,
    "sizeof(struct suspect_set)": harness.SUSPECT_SET,
    "offsetof(struct tracker_set, ways)": 8,
    "offsetof(struct suspect_set, ways)": 8,
    "offsetof(struct way, last_ns)": 16,
    "offsetof(struct tracker, count)": 40,
    "offsetof(struct tracker, slots)": program.TRACKER_HEAD.size,
    "offsetof(struct suspect, slots)": program.SUSPECT_HEAD.size,
}

PROBE = """
#define offsetof __builtin_offsetof
#include "packet.h"
#include "challenge.h"
#include "event.h"
#include "maps.h"

BPF_ARRAY(answers, __u64, %d);

int probe(struct xdp_md *ctx)
{
	int key;
	__u64 value;
%s
	return XDP_PASS;
}
"""


def offsets(fmt, skipped):
    """Where each field of a struct format begins, behind the first `skipped` bytes."""
    text = fmt.format[1:]
    text = text[len(f"{skipped}x"):] if skipped else text
    found, at = [], 0
    for item in items(text):
        if not item.endswith("x"):
            found.append(at)
        at += struct.calcsize("=" + item)
    return found


def items(text):
    """`QI6s3x64H` in parts; a repeated number is one array."""
    count = ""
    for letter in text:
        if letter.isdigit():
            count += letter
            continue
        yield count + letter
        count = ""


def expectations():
    expected = dict(CONSTANTS)
    for name, (fmt, skipped, fields) in STRUCTS.items():
        expected[f"sizeof(struct {name})"] = fmt.size - skipped
        places = offsets(fmt, skipped)
        assert len(places) == len(fields.split()), name
        for field, place in zip(fields.split(), places):
            expected[f"offsetof(struct {name}, {field})"] = place
    at = 0
    for field, width in COUNTERS.items():
        expected[f"offsetof(struct counters, {field})"] = at
        at += width * 8
    return expected


EXPECTED = expectations()


@pytest.fixture(scope="module")
def answers():
    """What the compiler says of every expression."""
    lines = "".join(
        f"	key = {i}; value = {expression}; answers.update(&key, &value);\n" for i, expression in enumerate(EXPECTED)
    )
    text = PROBE % (len(EXPECTED), lines)
    prog, fd = harness.load_text(text, harness.PRODUCT, "probe", ["answers"])
    with open(prog), open(fd):
        assert harness.test_run(prog, bytes(64)) == harness.PASS
        values = [libbpf.lookup(fd, i.to_bytes(4, sys.byteorder), 8) for i in range(len(EXPECTED))]
    return {name: int.from_bytes(value, sys.byteorder) for name, value in zip(EXPECTED, values)}


@pytest.mark.parametrize("expression", EXPECTED)
def test_c_and_python_agree(answers, expression):
    assert answers[expression] == EXPECTED[expression]


def test_every_map_has_the_sizes_that_python_uses(rig):
    sizes = {
        "settings": (4, program.SETTINGS.size),
        "attachments": (4, program.ATTACHMENT.size),
        "counters": (4, kernel.COUNTER_WORDS * 8),
        "local": (program.PREFIX_KEY.size, 4),
        "scratch": (4, 24 + 64 + program.OFFENDER.size + 56 + 16),
        "recent_unlisted": (4, 24),
        "sources": (program.PREFIX_KEY.size, program.SOURCE.size),
        "marks": (4, marks.SIZE),
        "blocks": (16, program.BLOCK.size),
        "wide_blocks": (4, 8),
        "spared": (16, 4),
        "trackers": (4, harness.TRACKER_SET),
        "suspects": (4, harness.SUSPECT_SET),
        "offenders": (16, program.OFFENDER.size),
        "clients": (16, program.CLIENT.size),
        "network": (4, 8),
        "storm": (4, 16),
        "cookies": (4, program.COOKIES.size),
        "challenge_rate": (4, 8),
        "looks": (4, program.LOOKS.size),
        "known_ports": (4, 2 * program.PORT_BYTES),
        "folds_by_source": (program.FOLD_KEY.size, program.FOLD.size),
        "folds_by_port": (program.FOLD_KEY.size, program.FOLD.size),
        "folds_by_interface": (4, program.FOLD.size),
        "connections": (0, 0),
        "probes": (0, 0),
        "alerts": (0, 0),
    }
    assert set(sizes) == set(program.MAPS)
    for name, fd in rig.kernel.maps.items():
        _, _, key_size, value_size, _ = struct.unpack_from("=5I", libbpf._info(fd, 80))
        assert (key_size, value_size) == sizes[name], name


def test_the_tables_have_the_sizes_that_were_asked_for(rig):
    entries = {name: libbpf.max_entries(fd) for name, fd in rig.kernel.maps.items()}
    assert entries["trackers"] * 4 == harness.PRODUCT.trackers
    assert entries["blocks"] == harness.PRODUCT.blocks
    assert entries["connections"] == harness.PRODUCT.ring_bytes
    assert entries["alerts"] == program.ALERTS_BYTES and entries["probes"] == program.PROBES_BYTES
    assert entries["clients"] == program.CLIENTS
    assert entries["suspects"] * 4 == harness.PRODUCT.trackers
    assert entries["folds_by_interface"] == 2 * entries["counters"] == 2 * program.ATTACHMENTS


def test_the_frame_builder_makes_right_checksums():
    syn = f.tcp("10.9.0.2", "10.9.0.1", 40000, 80, seq=0x1000)
    frame = f.ethernet(f.ipv4("10.9.0.2", "10.9.0.1", syn), bytes(6), bytes(6))
    assert f.checksum(frame[14:34]) == 0
    pseudo = frame[26:34] + bytes([0, 6, 0, len(syn)])
    assert f.checksum(pseudo + frame[34:]) == 0
    assert f.tcp_of(frame) == (frame[26:30], frame[30:34], 40000, 80, f.SYN, 0)
