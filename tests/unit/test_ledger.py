# SPDX-License-Identifier: Apache-2.0
"""The account over names: renames, interfaces without end, refusals of what has gone; no count is lost."""

from __future__ import annotations

from packetwatch.kernel import ZERO
from packetwatch.sinks.ledger import ENDED_NAMES, GONE, Ledger


def counted(count):
    return ZERO._replace(syns=(count, 0), recorded=(count, 0))


def terms(ledger):
    return {name: account.terms() for name, account in ledger.accounts().items()}


def balances(one):
    return one["syns"] == sum(number for name, number in one.items() if name != "syns")


def test_a_rename_leaves_what_was_counted_with_the_name_before():
    now = {0: counted(10)}
    ledger = Ledger(now.__getitem__)
    ledger.open(0, "eth0")
    ledger.refuse(0, "stdout", 0, 4)
    ledger.open(0, "wan0")
    now[0] = counted(13)
    found = terms(ledger)
    assert (found["eth0"]["syns"], found["eth0"]["connections_lost"]) == (10, 4)
    assert (found["wan0"]["syns"], found["wan0"]["connections_lost"]) == (3, 0)
    ledger.close(0)
    now[0] = ZERO
    assert terms(ledger) == found and all(map(balances, found.values()))


def test_interfaces_without_end_are_bounded_and_all_counted():
    now = {0: counted(2)}
    ledger = Ledger(now.__getitem__)
    for number in range(3 * ENDED_NAMES):
        ledger.open(0, f"veth{number}")
        ledger.refuse(0, "file", 0, 1)
        ledger.close(0)
    found = terms(ledger)
    assert len(found) <= ENDED_NAMES + 1 and f"veth{3 * ENDED_NAMES - 1}" in found
    assert found[GONE]["syns"] > ENDED_NAMES and all(map(balances, found.values()))
    total = ledger.total().terms()
    assert (total["syns"], total["connections_lost"]) == (6 * ENDED_NAMES, 3 * ENDED_NAMES)
    again = Ledger(now.__getitem__)
    again.restore(ledger.note())
    assert terms(again) == found


def test_what_is_refused_of_an_unknown_attachment_is_lost_as_well():
    ledger = Ledger({0: counted(5)}.__getitem__)
    ledger.open(0, "eth0")
    ledger.refuse(7, "journal", 1, 2)
    total = ledger.total().terms()
    assert (total["connections"], total["connections_lost"]) == (3, 2) and balances(total)
