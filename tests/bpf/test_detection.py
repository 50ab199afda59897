# SPDX-License-Identifier: Apache-2.0
"""The kernel's detection against the pure oracle, on a clock that the test sets: windows, blocks, lists, modes."""

from __future__ import annotations

import random

import pytest

from packetwatch import address, detection, event, libbpf, program, rules, thresholds
from packetwatch.address import parse, parse_prefix
from packetwatch.kernel import Block
from tests import frames as f
from tests.bpf import harness, traffic
from tests.bpf.harness import DROP, PASS, SECOND
from tests.bpf.traffic import A, B, C, D, send

TICK = detection.TICK_NS
START = 1000 * SECOND // TICK * TICK
WINDOW = 60 * SECOND // TICK * TICK
HOUR = 3600 * SECOND
RACE = 100_000_000  # BLOCK_RACE_NS


@pytest.fixture
def host(clocked):
    traffic.prepare(clocked)
    clocked.at(START)
    return clocked


def outcome(host, source, port):
    """What the program did with one SYN, in the oracle's words."""
    verdict = host.run(traffic.frame(source, port))
    records, scans = host.records(), host.scans()
    assert len(records) == (verdict == PASS)
    if scans:
        scan, = scans
        assert scan.saddr == parse(source) and scan.boot_ns == host.time_ns and verdict == PASS
        return detection.Verdict(detection.SCAN, scan.ports, scan.until_ns, scan.rule, scan.length)
    if verdict == DROP:
        return detection.Verdict(detection.DROP)
    would = records[0][6] & event.WOULD_DROP
    return detection.Verdict(detection.WOULD_DROP if would else detection.PASS)


def same(found, wanted):
    """The program does not say until when a source that it drops is blocked."""
    return found == (wanted if wanted.action == detection.SCAN else detection.Verdict(wanted.action))


def walk(host, guard, chance, sources, ports, steps, count, open_ports=()):
    """Random SYNs; returns the rules that blocked."""
    now, matched = START, set()
    for number in range(count):
        now = max(now + chance.choice(steps), START)
        host.at(now)
        source, port = chance.choice(sources), chance.choice(ports)
        found, wanted = outcome(host, source, port), guard.judge(parse(source), port, now, port not in open_ports)
        assert same(found, wanted), (number, source, port, now)
        matched.add(wanted.rule)
    return matched


@pytest.mark.parametrize("enforce", (True, False), ids=("enforce", "observe"))
@pytest.mark.parametrize("ports", (2, 3, 5, 64))
@pytest.mark.parametrize("seed", range(3))
def test_random_syns_have_the_oracles_verdicts(host, seed, ports, enforce):
    chance = random.Random(f"{seed} {ports} {enforce}")
    block_ns = chance.choice((SECOND, WINDOW, 0))
    host.settings(ports=ports, window_ns=WINDOW, block_ns=block_ns, observe=int(not enforce))
    guard = detection.Guard(detection.Detector(ports, WINDOW), detection.Blocks(*[block_ns] * 3), enforce)
    step = WINDOW // ports
    steps = (0, 1, TICK, TICK - 1, -TICK, SECOND // 5, step - TICK, step, step + TICK, step // 8, 2 * step)
    numbers = [chance.randrange(65536) for _ in range(chance.choice((ports, ports + 1, 2 * ports)))]
    walk(host, guard, chance, (A, B, C, D), numbers, steps, 1500)
    assert host.counters().evicted == 0


@pytest.mark.parametrize("count_closed", (False, True), ids=("all", "closed"))
@pytest.mark.parametrize("seed", range(12))
def test_random_rules_have_the_oracles_verdicts(host, seed, count_closed):
    """With open and closed ports, blocks that double, and windows from a part to a multiple of the scan's."""
    chance = random.Random(f"{seed} {count_closed}")
    ports = chance.choice((2, 3, 8, 40))
    several = ((8 * SECOND, SECOND, SECOND), (0, SECOND, SECOND), (WINDOW, 2 * SECOND, SECOND))
    bits = chance.choice((48, 64, 100, 128))
    lengths = detection.Blocks(*chance.choice(several), chance.choice((SECOND, WINDOW)), False, bits)
    block_rules = [
        detection.Rule(chance.randint(1, 16 if closed else 64), closed, WINDOW * chance.choice((1, 3, 15)) // 3)
        for closed in chance.choices((False, True, True), k=chance.choice((0, 1, 7)))
    ]
    block_rules.append(detection.Rule(chance.choice((1, 2, 3)), True, 5 * WINDOW))
    numbers = [chance.randrange(65536) for _ in range(24)]
    open_ports = set(numbers[: chance.choice((0, 8, 16))])
    host.kernel.put_ports(open_ports, ())
    longest, first, opened, forget_ns, *_ = lengths
    host.settings(ports=ports, window_ns=WINDOW, block_ns=longest, first_ns=first, open_ns=opened, forget_ns=forget_ns,
                  rules=block_rules, count_closed=int(count_closed), network_bits=bits,
                  network_mask=thresholds.network_mask(bits))
    listed = spare(host, chance.sample((D, "2001:db8:0:1::/112", "2001:db8::/32", A), chance.choice((0, 1))), bits)
    guard = detection.Guard(detection.Detector(ports, WINDOW, 64, block_rules, count_closed), lengths, True, listed)
    steps = (0, 1, TICK, TICK - 1, -TICK, WINDOW // 20, WINDOW // 3, WINDOW // 3 - TICK)
    hosts = (A, C, "2001:db8::", "2001:db8:0:1::7:7") if seed % 2 else (A, C)
    assert walk(host, guard, chance, hosts, numbers, steps, 1200, open_ports) > {0}
    assert host.counters().evicted == host.counters().suspects_evicted == 0


def spare(host, allowed, bits):
    """Allows these, and says so of their networks; returns the list in force."""
    listed = rules.effective([], [rules.Entry(parse_prefix(text), rules.CONFIG) for text in allowed], [])
    for prefix, source in listed.items():
        host.kernel.sources.put(prefix, source)
    for network in rules.spared(listed, bits):
        host.kernel.spared.add(network)
    host.kernel.lists_changed()
    return listed


@pytest.mark.parametrize("seed", range(3))
def test_random_lists_have_the_oracles_verdicts(host, seed):
    chance = random.Random(seed)
    texts = ("192.0.2.0/24", A, B, "192.0.0.0/16", "0.0.0.0/0", "::/0", C, "2001:db8::/32", "2001:db8::/64", D)
    prefixes = [parse_prefix(text) for text in texts]
    own = [parse_prefix(traffic.HOST4), parse_prefix(traffic.HOST6)]
    before = host.kernel.sources.read()
    for _ in range(6):
        allow = [rules.Entry(p, rules.CONFIG) for p in chance.sample(prefixes, 3)]
        ends = {prefix: chance.choice((0, START + WINDOW)) for prefix in chance.sample(prefixes, 3)}
        block = [rules.Entry(prefix, rules.MANUAL, until_ns=end) for prefix, end in ends.items()]
        after = rules.effective(own, allow, block)
        difference = rules.difference(before, after)
        for prefix, source in difference.changed:
            host.kernel.sources.put(prefix, source)
        for prefix in difference.removed:
            host.kernel.sources.remove(prefix)
        host.kernel.lists_changed()
        before = host.kernel.sources.read()
        assert before == after
        guard = detection.Guard(detection.Detector(3, WINDOW), detection.Blocks(1, 1, 1), True, after)
        host.settings(window_ns=WINDOW, block_ns=1)
        forget(host)
        walk(host, guard, chance, (A, B, C, D), (80, 81), (SECOND, WINDOW // 4), 60)


def forget(host):
    """Empties the trackers."""
    harness.empty_array(host.kernel, "trackers", harness.CLOCKED.trackers // 4, harness.TRACKER_SET)


@pytest.mark.parametrize("ports", (2, 3, 64))
@pytest.mark.parametrize(
    "late, found", [(WINDOW - TICK, True), (WINDOW - 1, True), (WINDOW, False), (WINDOW + TICK, False)]
)
def test_a_port_leaves_the_window_exactly_when_it_is_over(host, ports, late, found):
    host.settings(ports=ports, window_ns=WINDOW)
    send(host, A, *range(1, ports))
    host.at(START + late)
    assert send(host, A, ports) == [PASS]
    assert [scan.ports for scan in host.scans()] == ([tuple(range(1, ports + 1))] if found else [])
    assert send(host, A, 1) == [DROP if found else PASS]


def test_the_window_slides_with_each_port(host):
    host.settings(ports=3, window_ns=WINDOW)
    for port in range(1, 101):
        host.at(START + port * WINDOW // 2 // TICK * TICK)
        send(host, A, port)
    assert not host.scans()


def test_hammering_one_port_is_no_scan(host):
    host.settings(ports=2)
    host.run(traffic.frame(A, 80), repeat=1000)
    assert len(host.records()) == 1000 and not host.scans()


def test_a_repeated_port_moves_nothing_but_itself(host):
    host.settings(ports=64)
    send(host, A, *range(1, 60))
    host.at(START + TICK)
    send(host, A, 59)
    ways = [way for way in trackers(host) if way[0] == parse(A)]
    assert [slots for _, slots in ways] == [[(START + TICK, 59)] + [(START, port) for port in range(58, 0, -1)]]


def trackers(host):
    """(source, [(time, port), ...]) of every tracker in use."""
    head, size = harness.TRACKER_HEAD, harness.TRACKER_HEAD + 8 * event.SCAN_SLOTS
    sets = range(harness.CLOCKED.trackers // 4)
    for _, value in libbpf.items_array(host.kernel.maps["trackers"], sets, harness.TRACKER_SET):
        for start in range(8, len(value), size):
            way = value[start : start + size]
            source, last_ns, _, _, count = program.TRACKER_HEAD.unpack(way[:head])
            if last_ns:
                words = memoryview(way[head:]).cast("Q").tolist()[:count]
                yield source, [(word & -TICK, word & 0xFFFF) for word in words]


def test_ports_0_and_65535_are_ports_like_others(host):
    send(host, A, 0, 65535, 1)
    assert [scan.ports for scan in host.scans()] == [(0, 65535, 1)]


def test_sources_are_told_apart(host):
    for source in (A, B, C, D, "::c000:201", "2001:db8:0:1::1"):
        send(host, source, 80, 81)
    assert not host.scans()
    send(host, C, 82)
    assert [scan.saddr for scan in host.scans()] == [parse(C)]


def test_the_record_of_a_scan_is_complete(host):
    host.settings(block_ns=HOUR)
    send(host, C, 80, 81, 82)
    scan, = host.scans()
    flags, ports = event.IPV6 | event.SCAN, (80, 81, 82)
    assert scan == event.Alert(
        START, START + HOUR, parse(C), parse(traffic.HOST6), 0, flags, event.BLOCKED, 128, event.NO_RULE, 0, ports,
        ports,
    )
    assert traffic.ports(host.records()) == [80, 81, 82]
    assert host.counters().scans == (0, 1)


@pytest.mark.parametrize("block_ns", (SECOND, HOUR))
def test_a_block_ends_exactly(host, block_ns):
    host.settings(block_ns=block_ns)
    send(host, A, 80, 81, 82)
    until = START + block_ns
    assert traffic.block(host, A) == Block(parse(A), until, START, 0, 0)
    for now, verdict in ((START, DROP), (START + 1, DROP), (until - 1, DROP), (until, PASS)):
        host.at(now)
        assert send(host, A, 83) == [verdict]
    assert traffic.block(host, A).dropped == 3 == host.counters().dropped[0]


def test_a_block_can_be_for_ever(host):
    host.settings(block_ns=0)
    send(host, A, 80, 81, 82)
    host.at(START + 20 * 365 * 86400 * SECOND)
    assert send(host, A, 80) == [DROP]
    assert host.scans()[0].until_ns == 0 == traffic.block(host, A).until_ns


def test_after_its_block_a_source_starts_afresh_and_can_be_blocked_again(host):
    """The count of drops goes on where user space has not taken the ended block away: it may not have told of all."""
    host.settings(block_ns=SECOND)
    assert send(host, A, 80, 81, 82, 80, 81) == [PASS] * 3 + [DROP] * 2
    host.at(START + SECOND)
    assert send(host, A, 80, 81) == [PASS, PASS]
    assert len(host.scans()) == 1
    assert send(host, A, 82, 83) == [PASS, DROP]
    assert traffic.block(host, A) == Block(parse(A), START + 2 * SECOND, START + SECOND, 3, 0)


def test_a_removed_block_lets_the_source_in_once_no_cpu_can_be_late(host):
    send(host, A, 80, 81, 82)
    host.at(START + RACE)
    assert host.kernel.blocks.remove(parse_prefix(A)).until_ns == START + HOUR
    assert send(host, A, 80, 81) == [PASS, PASS]


def test_a_late_cpu_is_blocked_before_the_block_stands(host):
    """As if another CPU had taken the lock, found the scan and not yet written the block."""
    send(host, A, 80, 81, 82)
    host.kernel.blocks.remove(parse_prefix(A))
    host.at(START + RACE - 1)
    assert send(host, A, 83) == [DROP]
    host.at(START + RACE)
    assert send(host, A, 83) == [PASS]


def test_only_new_connections_of_a_blocked_source_are_dropped(host):
    send(host, A, 80, 81, 82)
    for flags in (f.ACK, f.ACK | f.PSH, f.FIN | f.ACK, f.RST, f.SYN | f.ACK):
        packet = f.ipv4(A, traffic.HOST4, f.tcp(A, traffic.HOST4, 40000, 80, flags))
        assert host.run(f.ethernet(packet, harness.MAC, bytes(6))) == PASS
    assert send(host, A, 80) == [DROP]


def test_a_block_that_people_set_first_stays_as_it_is(host):
    old = Block(parse(A), START + 5 * HOUR, START - 1, 7, 3)
    send(host, A, 80, 81)
    assert host.kernel.blocks.put(old) and not host.kernel.blocks.put(old)
    assert send(host, A, 82) == [DROP]
    assert traffic.block(host, A) == old._replace(dropped=8)


def test_observe_records_what_enforce_would_drop(host):
    host.settings(observe=1)
    assert send(host, A, 80, 81, 82, 83, 84) == [PASS] * 5
    scan, = host.scans()
    assert scan.flags == event.WOULD_DROP | event.SCAN and scan.block == event.BLOCKED
    closed, dropped = event.CLOSED, event.CLOSED | event.WOULD_DROP
    assert [record[6] for record in host.records()] == [closed] * 3 + [dropped] * 2
    counted = host.counters()
    assert counted.would_drop == (2, 0) and sum(counted.dropped) == 0 and counted.recorded == (5, 0)
    assert traffic.block(host, A).dropped == 2


def test_enforce_after_observe_drops_whom_the_table_holds(host):
    host.settings(observe=1)
    send(host, A, 80, 81, 82)
    send(host, B, 80, 81, 82)
    host.kernel.blocks.remove(parse_prefix(B))
    host.at(START + RACE)
    host.settings(observe=0)
    assert send(host, A, 80) == [DROP] and send(host, B, 80) == [PASS]


def test_observe_would_drop_the_block_list_too(host):
    host.settings(observe=1)
    host.source("192.0.2.0/24", rules.BLOCK)
    assert send(host, A, 80) == [PASS]
    assert [record[6] for record in host.records()] == [event.WOULD_DROP]
    assert host.counters().would_drop == (1, 0)


def test_an_allowed_source_is_recorded_and_never_judged(host):
    host.source("192.0.2.0/24", rules.ALLOW)
    assert send(host, A, *range(100)) == [PASS] * 100
    assert {record[6] for record in host.records()} == {event.ALLOWED | event.CLOSED}
    assert not host.scans() and host.kernel.tracked() == 0


def test_an_allowed_source_passes_once_its_block_is_taken_away(host):
    """The kernel half asks the blocks first: to take them away from who is allowed is user space's part."""
    send(host, A, 80, 81, 82)
    host.source(A, rules.ALLOW)
    assert send(host, A, 83) == [DROP]
    host.kernel.blocks.remove(parse_prefix(A))
    assert send(host, A, 83) == [PASS]
    assert host.records()[-1][6] == event.ALLOWED | event.CLOSED


@pytest.mark.parametrize(
    "flags, verdict, counted", [(rules.ALLOW, PASS, 2), (rules.BLOCK, DROP, 1), (rules.OWN, PASS, 1)]
)
def test_a_source_known_as_unlisted_is_listed_from_the_change_on(host, flags, verdict, counted):
    send(host, A, 80)
    host.source(A, flags)
    assert send(host, A, 80) == [verdict]
    assert len(host.records()) == counted
    host.kernel.sources.remove(parse_prefix(A))
    host.kernel.lists_changed()
    assert send(host, A, 80) == [PASS] and len(host.records()) == 1


def test_a_destination_known_as_local_is_foreign_from_the_change_on(host):
    send(host, A, 80)
    host.kernel.local.remove(parse_prefix(traffic.HOST4))
    host.kernel.lists_changed()
    send(host, A, 80)
    assert host.counters().syns == (1, 0) and host.counters().ignored[0] == 1
    host.local(traffic.HOST4)
    send(host, A, 80)
    assert host.counters().syns == (2, 0)


def test_two_destinations_in_turn_are_both_local(host):
    host.local("10.9.0.9")
    other = f.ethernet(f.ipv4(A, "10.9.0.9", f.tcp(A, "10.9.0.9", 1, 80)), harness.MAC, bytes(6))
    for _ in range(3):
        send(host, A, 80)
        host.run(other)
    assert host.counters().syns == (6, 0)


def test_a_listed_block_drops_until_its_end_and_counts_apart(host):
    host.source("192.0.2.0/24", rules.BLOCK, START + SECOND)
    host.source("2001:db8::/32", rules.BLOCK)
    assert send(host, A, 80) == [DROP] and send(host, C, 80) == [DROP]
    host.at(START + SECOND)
    assert send(host, A, 80) == [PASS] and send(host, C, 80) == [DROP]
    assert host.counters().dropped == (0, 0, 1, 2, 0, 0)
    assert host.kernel.sources.dropped(parse_prefix("192.0.2.0/24")) == 1
    assert host.kernel.sources.dropped(parse_prefix("2001:db8::/32")) == 2


def test_a_listed_prefix_keeps_its_own_count_and_no_others(host):
    host.source("192.0.2.0/24", rules.BLOCK)
    send(host, A, 80, 81, 82, 83)
    host.source("192.0.2.0/24", rules.BLOCK, START + HOUR)
    assert host.kernel.sources.dropped(parse_prefix("192.0.2.0/24")) == 4
    assert host.kernel.sources.dropped(parse_prefix(A)) == 0
    host.source(A, rules.BLOCK)
    send(host, A, 80)
    assert host.kernel.sources.dropped(parse_prefix(A)) == 1
    assert host.kernel.sources.dropped(parse_prefix("192.0.2.0/24")) == 4


def test_the_longest_prefix_decides(host):
    host.source("0.0.0.0/0", rules.BLOCK)
    host.source("192.0.2.0/24", rules.ALLOW)
    host.source(B, rules.BLOCK)
    assert send(host, "203.0.113.1", 80) + send(host, A, 80) + send(host, B, 80) == [DROP, PASS, DROP]
    assert send(host, C, 80) == [PASS], "a prefix of IPv4 says nothing of IPv6"


def fill_blocks(host, until_ns=0):
    for number in range(harness.CLOCKED.blocks):
        assert host.kernel.blocks.put(Block(parse(f"203.0.113.{number}"), until_ns, START, 0, 0))


def test_a_full_block_table_refuses_and_says_so(host):
    fill_blocks(host)
    send(host, A, 80, 81, 82)
    assert host.scans()[0].block == event.REFUSED
    assert host.counters().refused == 1 and traffic.block(host, A) is None
    assert send(host, "203.0.113.5", 80) == [DROP], "no block gives way"
    host.at(START + RACE)
    assert send(host, A, 80, 81, 82) == [PASS] * 3, "not blocked, so judged again"
    assert [scan.block for scan in host.scans()] == [event.REFUSED]
    assert host.counters().refused == 2


def test_a_full_block_table_renews_the_block_of_a_source_that_has_one(host):
    fill_blocks(host, until_ns=START + 1)
    host.at(START + 1)
    send(host, "203.0.113.5", 80, 81, 82)
    assert host.scans()[0].block == event.BLOCKED
    assert send(host, "203.0.113.5", 80) == [DROP] and host.counters().refused == 0


def test_a_full_block_table_raises_an_error_in_user_space(host):
    fill_blocks(host)
    with pytest.raises(OSError):
        host.kernel.blocks.put(Block(parse(A), 0, START, 0, 0))
    assert len(list(host.kernel.blocks.read())) == harness.CLOCKED.blocks


def test_every_replaced_tracker_is_counted(host):
    for number in range(2000):
        send(host, traffic.source(number), 80)
    assert host.kernel.tracked() == harness.CLOCKED.trackers
    assert host.counters().evicted == 2000 - harness.CLOCKED.trackers
    host.at(START + 60 * SECOND)
    for number in range(2000, 3000):
        send(host, traffic.source(number), 80)
    stale = harness.CLOCKED.trackers - sum(slots[0][0] == START for _, slots in trackers(host))
    assert stale > harness.CLOCKED.trackers / 2
    assert host.counters().evicted == 2000 - harness.CLOCKED.trackers + 1000 - stale


def test_the_oldest_of_a_set_gives_way(host):
    """Ever fresh sources never push out one that keeps coming."""
    host.settings(ports=64)
    for number in range(1500):
        host.at(START + number * TICK)
        send(host, traffic.source(number), 80)
        if number % 20 == 0:
            send(host, A, number // 20 + 1)
    assert [scan.saddr for scan in host.scans()] == [parse(A)]


def test_counts_are_kept_by_attachment(host):
    send(host, A, 80)
    host.attach(5)
    send(host, A, 81)
    send(host, C, 80)
    assert host.counters(0).syns == (1, 0) and host.counters(5).syns == (1, 1)
    assert [record[5] for record in host.records()] == [0, 5, 5]


def test_a_scan_over_two_attachments_is_one(host):
    send(host, A, 80, 81)
    host.attach(5)
    send(host, A, 82)
    assert [scan.attachment for scan in host.scans()] == [5]


def test_an_interface_that_is_not_watched_is_not_judged(host):
    host.kernel.remove_attachment(harness.LO)
    assert send(host, A, *range(10)) == [PASS] * 10
    assert host.counters().words() == (0,) * len(host.counters().words())


def test_interfaces_whose_numbers_collide_are_all_found(host):
    host.kernel.remove_attachment(harness.LO)
    for number in range(1, 8):
        host.attach(number, harness.LO + number * 256)
    host.attach(9)
    send(host, A, 80)
    host.kernel.remove_attachment(harness.LO + 256)
    send(host, A, 81)
    assert host.counters(9).syns == (2, 0)
    host.attach(10, harness.LO + 2560)
    with pytest.raises(OSError):
        host.attach(11, harness.LO + 2816)


def test_where_the_mac_is_not_tested_only_group_addresses_are_foreign(host):
    host.attach(mac_test=False)
    for first, counted in ((b"\2", True), (b"\0", True), (b"\1", False), (b"\xff", False), (b"\x33", False)):
        host.run(first + b"\x77" * 5 + traffic.frame(A, 80)[6:])
        assert len(host.records()) == counted, first
    assert host.counters().ignored == (0, 0, 3, 0)


@pytest.mark.parametrize("byte", range(6))
def test_a_mac_that_differs_in_one_byte_is_foreign(host, byte):
    mac = bytearray(harness.MAC)
    mac[byte] ^= 4
    host.run(bytes(mac) + traffic.frame(A, 80)[6:])
    assert host.counters().ignored == (0, 0, 1, 0) and not host.records()


@pytest.mark.parametrize("source, destination, legal", [
    ("127.0.0.1", "127.0.0.1", True),
    ("127.9.9.9", traffic.HOST4, True),
    (traffic.HOST4, traffic.HOST4, True),
    (traffic.HOST4, "127.0.0.1", True),
    ("::1", "::1", True),
    (traffic.HOST6, traffic.HOST6, True),
    (A, traffic.HOST4, True),
    ("0.0.0.0", traffic.HOST4, False),
    ("224.0.0.1", traffic.HOST4, False),
    ("255.255.255.255", traffic.HOST4, False),
    ("ff02::1", traffic.HOST6, False),
    ("::ffff:192.0.2.1", traffic.HOST6, False),
])
def test_on_a_loopback_device_own_sources_are_legal(host, source, destination, legal):
    host.attach(mac=bytes(6), loopback=True, mac_test=False)
    packet = f.ipv6 if ":" in source else f.ipv4
    frame = f.ethernet(packet(source, destination, f.tcp(source, destination, 40000, 80)), bytes(6), bytes(6))
    assert host.run(frame) == PASS
    record = host.records()
    assert [r[1:3] for r in record] == ([(parse(source), parse(destination))] if legal else [])
    assert host.counters().ignored[1] == (not legal)


def test_own_sources_on_a_loopback_device_can_scan(host):
    host.attach(mac=bytes(6), loopback=True, mac_test=False)
    assert send(host, traffic.HOST4, 80, 81, 82, 83) == [PASS, PASS, PASS, DROP]
    assert address.text(host.scans()[0].saddr) == traffic.HOST4


def test_the_alert_of_a_rule_names_it_and_its_ports(host):
    host.settings(rules=[(2, False, WINDOW), (3, True, WINDOW)], ports=64, block_ns=0, first_ns=SECOND)
    host.kernel.put_ports((22,), ())
    send(host, A, 22, 81)
    host.settings(rules=[(9, False, WINDOW), (2, True, WINDOW)], ports=64, block_ns=0, first_ns=SECOND)
    send(host, C, 81, 22, 82)
    one, two = host.scans()
    assert (one.rule, one.ports, one.closed, one.flags) == (1, (22, 81), (81,), 0)
    assert (two.rule, two.ports, two.closed, two.flags) == (2, (81, 82), (81, 82), event.IPV6)
    assert one.until_ns == two.until_ns == START + SECOND
    assert host.counters().scans == (0, 0) and host.counters().blocked == 2


def test_a_honeypot_port_blocks_at_once(host):
    host.settings(first_ns=SECOND)
    host.kernel.put_ports((), (23,))
    assert send(host, A, 22, 23, 80) == [PASS, PASS, DROP]
    alert, = host.scans()
    assert (alert.rule, alert.ports, alert.closed, alert.flags) == (event.HONEYPOT, (23,), (23,), 0)
    assert alert.until_ns == START + SECOND
    host.source(C, rules.ALLOW)
    assert send(host, C, 23, 24) == [PASS, PASS] and not host.scans()


def test_ports_known_as_open_are(host):
    host.kernel.put_ports((0, 7, 8, 65535), ())
    send(host, A, 0)
    send(host, B, 7, 8)
    send(host, C, 65535, 9)
    states = [record[6] & (event.OPEN | event.CLOSED) for record in host.records()]
    assert states == [event.OPEN] * 4 + [event.CLOSED]


NETWORK, ANOTHER = "2001:db8:7::", "2001:db8:8::"


def closed_twice(host, bits):
    """Two closed ports are an offence, and networks of so many bits one offender."""
    mask = thresholds.network_mask(bits)
    host.settings(rules=[(2, True, WINDOW)], ports=64, block_ns=HOUR, first_ns=SECOND, network_bits=bits,
                  network_mask=mask)


def blocked(host):
    return {address.prefix_text(each.prefix) for each in host.kernel.blocks.read()}


def test_who_hops_within_a_network_is_blocked_with_it(host):
    closed_twice(host, 64)
    assert send(host, NETWORK + "1", 80, 81, 82) == [PASS, PASS, DROP]
    assert send(host, NETWORK + "2", 83, 84) == [PASS, PASS]
    first, second = host.scans()
    assert (first.length, first.until_ns) == (128, START + SECOND)
    assert (second.length, second.until_ns, second.block) == (64, START + 2 * SECOND, event.BLOCKED)
    assert address.prefix_text(second.blocked) == NETWORK + "/64"
    assert blocked(host) == {NETWORK + "1", NETWORK + "/64"}
    for last in ("2", "3", "ffff:ffff:ffff:ffff", ""):
        assert send(host, NETWORK + last, 90) == [DROP]
    assert send(host, ANOTHER + "1", 80) == [PASS] == send(host, "2001:db8:7:1::1", 80) == send(host, A, 80)
    assert host.kernel.blocks.get(parse(NETWORK)).dropped == 4
    host.at(START + 2 * SECOND)
    assert send(host, NETWORK + "3", 80) == [PASS]


def test_several_of_a_network_who_try_the_same_ports_are_blocked_each(host):
    """As where a service of this host is down."""
    closed_twice(host, 64)
    for last in "123":
        send(host, NETWORK + last, 80, 81)
    assert [(scan.length, scan.until_ns) for scan in host.scans()] == [(128, START + SECOND)] * 3


def test_two_networks_are_two_offenders(host):
    closed_twice(host, 64)
    for number, network in enumerate((NETWORK, ANOTHER)):
        send(host, network + "1", 80 + 2 * number, 81 + 2 * number)
    assert [(scan.length, scan.until_ns) for scan in host.scans()] == [(128, START + SECOND)] * 2


def test_with_128_bits_each_address_is_by_itself(host):
    closed_twice(host, 128)
    for number in (1, 2, 3):
        send(host, f"{NETWORK}{number}", 80 + 2 * number, 81 + 2 * number)
    assert {(scan.length, scan.until_ns) for scan in host.scans()} == {(128, START + SECOND)}
    host.at(START + SECOND)
    send(host, NETWORK + "1", 90, 91)
    assert [(scan.length, scan.until_ns) for scan in host.scans()] == [(128, START + 3 * SECOND)]
    assert send(host, NETWORK + "4", 80) == [PASS]


def test_ipv4_has_no_networks(host):
    closed_twice(host, 48)
    for port, source in ((80, A), (82, B), (84, A)):
        host.at(host.time_ns + 2 * SECOND)
        send(host, source, port, port + 1)
    assert [scan.length for scan in host.scans()] == [128] * 3
    assert send(host, "192.0.2.77", 80) == [PASS]


def test_a_network_in_which_somebody_is_allowed_is_never_blocked(host):
    closed_twice(host, 64)
    spare(host, [NETWORK + "aaaa"], 64)
    for number in (1, 2, 3):
        send(host, f"{NETWORK}{number}", 80 + 2 * number, 81 + 2 * number)
    assert [(scan.length, scan.until_ns) for scan in host.scans()] == [
        (128, START + SECOND), (128, START + 2 * SECOND), (128, START + 4 * SECOND)
    ]
    assert send(host, NETWORK + "3", 90) == [DROP] and send(host, NETWORK + "aaaa", 80, 81, 82) == [PASS] * 3


def test_the_block_of_a_networks_first_address_becomes_that_of_the_network(host):
    closed_twice(host, 64)
    send(host, NETWORK, 80, 81)
    assert send(host, NETWORK + "1", 82, 83, 84) == [PASS, PASS, DROP]
    assert blocked(host) == {NETWORK + "/64"} and send(host, NETWORK, 80) == [DROP]


def test_once_no_network_is_blocked_nobody_looks_for_one(host):
    def looks():
        return any(libbpf.lookup(host.kernel.maps["wide_blocks"], bytes(4), 8))

    closed_twice(host, 64)
    send(host, NETWORK + "1", 80, 81)
    assert not looks()
    send(host, NETWORK + "2", 82, 83)
    host.kernel.blocks.settle()
    assert looks() and send(host, NETWORK + "3", 80) == [DROP]
    assert host.kernel.blocks.remove(parse_prefix(NETWORK)) is None
    assert host.kernel.blocks.remove(parse_prefix(NETWORK + "/64")).length == 64
    host.kernel.blocks.settle()
    assert not looks() and send(host, NETWORK + "3", 80) == [PASS]
    host.kernel.blocks.put(Block(parse(NETWORK), 0, START, 0, 0, 64))
    assert looks() and send(host, NETWORK + "4", 80) == [DROP]


def test_a_storm_of_blocks_is_frozen_until_its_minute_is_over(host):
    """The scans are recorded all the same."""
    host.settings(storm=5)
    sources = [traffic.source(number) for number in range(8)]
    for number, source in enumerate(sources):
        assert send(host, source, 80, 81, 82, 83) == [PASS] * 3 + [DROP if number < 5 else PASS]
    assert [alert.block for alert in host.scans()] == [event.BLOCKED] * 5 + [event.FROZEN] * 3
    assert all(traffic.block(host, source) is None for source in sources[5:])
    assert host.counters().frozen == 3 and host.counters().blocked == 5 and sum(host.counters().dropped) == 5
    assert send(host, sources[0], 80) == [DROP]
    host.at(START + 60 * SECOND)
    assert send(host, sources[7], 80, 81, 82, 83)[-1] == DROP
    assert [alert.block for alert in host.scans()] == [event.BLOCKED]


def test_every_replaced_suspect_is_counted(host):
    host.settings(rules=[(16, True, WINDOW)], ports=64)
    for number in range(1000):
        send(host, traffic.source(number), 80)
    assert host.kernel.suspected() == host.kernel.parameters.suspects
    assert host.counters().suspects_evicted == 1000 - host.kernel.parameters.suspects


PROBES = (0, f.FIN, f.FIN | f.PSH | f.URG, f.SYN | f.FIN, f.URG, f.PSH)


def probe(source, port, flags):
    destination = traffic.HOST6 if ":" in source else traffic.HOST4
    segment = f.tcp(source, destination, 40000, port, flags)
    build = f.ipv6 if ":" in source else f.ipv4
    return f.ethernet(build(source, destination, segment), harness.MAC, bytes(6))


@pytest.mark.parametrize("source", (A, C))
def test_probes_are_recorded_and_dropped(host, source):
    host.settings(ports=64)
    assert [host.run(probe(source, 80, flags)) for flags in PROBES] == [DROP] * len(PROBES)
    assert [each.tcp_flags for each in host.probes()] == list(PROBES)
    counted = host.counters()
    assert sum(counted.probes) == len(PROBES) and sum(counted.syns) == 0 == sum(counted.dropped)
    host.change(observe=1)
    assert host.run(probe(source, 80, f.FIN)) == PASS
    each, = host.probes()
    assert each.flags & event.WOULD_DROP and each.flags & event.CLOSED
    host.change(observe=0)
    host.source(source, rules.ALLOW)
    assert host.run(probe(source, 80, f.FIN)) == PASS and len(host.probes()) == 1


def test_probes_are_not_in_the_count_of_a_listed_source(host):
    host.source("192.0.2.0/24", rules.BLOCK)
    host.run(probe(A, 80, f.FIN))
    send(host, A, 80)
    assert host.kernel.sources.dropped(parse_prefix("192.0.2.0/24")) == 1 == sum(host.counters().dropped)


def test_probes_make_a_scan_like_syns(host):
    for port in (80, 81, 82):
        host.run(probe(A, port, f.FIN))
    assert [(alert.ports, alert.block) for alert in host.scans()] == [((80, 81, 82), event.BLOCKED)]
    assert send(host, A, 83) == [DROP]
    assert traffic.block(host, A).dropped == 1


def test_probes_beyond_the_rate_are_counted_only(host):
    host.settings(ports=64, fold_interval_ns=SECOND, fold_burst_ns=3 * SECOND)
    for _ in range(10):
        host.run(probe(A, 80, f.FIN))
    assert len(host.probes()) == 3 and host.counters().probes_untold == (7, 0)
