# SPDX-License-Identifier: Apache-2.0
"""Names of rules, also of those that are in force no more, and how the settings of blocks go together."""

import pytest

from packetwatch import thresholds
from packetwatch.event import HONEYPOT, NO_RULE
from packetwatch.kinds import SECOND_NS
from packetwatch.settings import Settings


def test_a_rule_is_called_as_it_is_written():
    names = thresholds.names(Settings())
    assert names == ["scan:closed", "5:closed:10m", "10:closed:1d"]
    assert [thresholds.name_rule(names, n) for n in (NO_RULE, 1, 3, HONEYPOT)] == ["", names[0], names[2], "honeypot"]


def test_a_rule_that_is_gone_has_its_number():
    assert thresholds.name_rule([], 1) == "rule 1" and thresholds.name_rule(["5:closed:10m"], 8) == "rule 8"


@pytest.mark.parametrize(
    "first_s, longest_s, expected_s", [(60, 3600, 60), (7200, 3600, 3600), (0, 3600, 3600), (60, 0, 60), (0, 0, 0)]
)
def test_the_first_block_is_no_longer_than_the_longest(first_s, longest_s, expected_s):
    settings = Settings(block_first_ns=first_s * SECOND_NS, block_duration_ns=longest_s * SECOND_NS)
    assert thresholds.first_block_ns(settings) == expected_s * SECOND_NS
    opened = thresholds.of(settings).open_ns
    assert opened == min(expected_s or 60, 60) * SECOND_NS


def test_the_rule_of_a_scan_is_as_the_scan_and_no_wider_than_what_is_remembered():
    rule = thresholds.of(Settings(scan_ports=5, scan_window_ns=SECOND_NS)).rules[0]
    assert (rule.ports, rule.window_ns, rule.closed) == (5, SECOND_NS, 1)
    assert thresholds.of(Settings(scan_ports=64)).rules[0].ports == 16
