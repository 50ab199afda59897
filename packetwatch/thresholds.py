# SPDX-License-Identifier: Apache-2.0
"""The settings by which is judged, as the kernel half has them: the same for the resident and for a replay.

Not for how it records: whoever runs it says that.
"""

from __future__ import annotations

from collections.abc import Sequence

from packetwatch import address, detection
from packetwatch.event import HONEYPOT
from packetwatch.kernel import Kernel, KernelRule, KernelSettings
from packetwatch.kinds import rule_text, spread
from packetwatch.settings import Settings


def of(s: Settings) -> KernelSettings:
    """Nothing is summed by these, and every record wakes its reader."""
    rules = [rule.beside(s.scan_ports, s.scan_window_ns) for rule in s.block_rules]
    keep_ns, suspect_ns = detection.windows(s.scan_window_ns, rules)
    first_ns = first_block_ns(s)
    return KernelSettings(
        window_ns=s.scan_window_ns,
        block_ns=s.block_duration_ns,
        first_ns=first_ns,
        open_ns=min(first_ns or detection.UNPROVEN_NS, detection.UNPROVEN_NS),
        forget_ns=s.block_forget_ns,
        keep_ns=keep_ns,
        suspect_ns=suspect_ns,
        fold_interval_ns=0,
        fold_burst_ns=0,
        seed=0,
        lists_generation=1,
        network_bits=s.block_ipv6_prefix,
        network_mask=network_mask(s.block_ipv6_prefix),
        wakeup_mask=0,
        ports=s.scan_ports,
        observe=int(s.mode == "observe"),
        generation=0,
        count_closed=int(s.scan_count == "closed"),
        storm=s.block_storm,
        proof=int(s.block_proof == "challenge"),
        rules=tuple(KernelRule(rule.window_ns, rule.ports, int(rule.closed)) for rule in rules),
    )


def network_mask(bits: int) -> bytes:
    """So many bits set, the rest not."""
    return address.mask(b"\xff" * address.SIZE, bits)


def first_block_ns(s: Settings) -> int:
    """block.first, if block.duration allows it; 0 is forever."""
    return min([ns for ns in (s.block_first_ns, s.block_duration_ns) if ns], default=0)


def put_ports(kernel: Kernel, settings: Settings) -> None:
    """Those that configuration knows."""
    kernel.put_ports(spread(settings.open_ports), spread(settings.block_honeypot_ports))


def names(settings: Settings) -> list[str]:
    """What records call the rules."""
    return [rule_text(rule) for rule in settings.block_rules]


def names_in_force(kernel: Kernel) -> list[str]:
    """The same of those that a kernel half has, of whose settings nothing is known."""
    rules = kernel.settings().rules
    return [rule_text(detection.Rule(rule.ports, bool(rule.closed), rule.window_ns)) for rule in rules]


def name_rule(names: Sequence[str], number: int) -> str:
    """Empty where a scan alone blocks. An alert may come of rules that are in force no more."""
    if number == HONEYPOT:
        return "honeypot"
    return names[number - 1] if 0 < number <= len(names) else f"rule {number}" if number else ""
