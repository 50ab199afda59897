# SPDX-License-Identifier: Apache-2.0
"""The challenge to a blocked source, its answer, what both are worth: frame by frame, on a clock that the test sets."""

from __future__ import annotations

import random
import struct

import pytest

from packetwatch import address, detection, event, libbpf, program, rules, thresholds
from tests import frames as f
from tests.bpf import harness, traffic
from tests.bpf.harness import DROP, PASS, SECOND, TX
from tests.bpf.traffic import A, B, C

START = 1000 * SECOND
HOUR, DAY = 3600 * SECOND, 86400 * SECOND
RULES = [(3, True, 60 * SECOND)]
SCANNER = b"\2" + bytes(5)


@pytest.fixture
def host(clocked):
    """One whose blocks begin at a minute and last, where they may, up to an hour."""
    traffic.prepare(clocked)
    clocked.settings(block_ns=HOUR, first_ns=60 * SECOND, open_ns=60 * SECOND, forget_ns=DAY, rules=RULES, proof=1)
    libbpf.update(clocked.kernel.maps["cookies"], bytes(4), bytes(program.COOKIES.size))
    clocked.kernel.turn_cookies()
    clocked.kernel.allow_looks(1000)
    clocked.at(START)
    return clocked


def syn(source, port=443, sport=40000, seq=0x1000, tags=(), **fields):
    return segment(source, port, sport, tags, seq=seq, **fields)


def answer(source, port, sport, cookie, **fields):
    """What a client makes of a challenge: the handshake's last segment."""
    return segment(source, port, sport, **{"flags": f.ACK, "seq": 0x1001, "ack": cookie + 1 & 0xFFFFFFFF, **fields})


def segment(source, port, sport, tags=(), **fields):
    own, packet = (traffic.HOST6, f.ipv6) if ":" in source else (traffic.HOST4, f.ipv4)
    wrapped = {"tags": tags} if tags else {}
    return f.ethernet(packet(source, own, f.tcp(source, own, sport, port, **fields)), harness.MAC, SCANNER, **wrapped)


def scan(host, source, *ports):
    assert traffic.send(host, source, *(ports or (1, 2, 3))) == [PASS] * (len(ports) or 3)


def challenged(host, source, port=443, sport=40000, seq=0x1000, **fields):
    """What a blocked source's SYN gets: the parts of the SYN-ACK."""
    verdict, frame = harness.answer(host.kernel.prog, syn(source, port, sport, seq, **fields))
    assert verdict == TX
    return frame


def cookie_in(frame):
    """The sequence number of a challenge: the last 20 bytes are the TCP header."""
    return struct.unpack_from("!I", frame, len(frame) - 16)[0]


def prove(host, source, port=443, sport=40000, seq=0x1000):
    cookie = cookie_in(challenged(host, source, port, sport, seq))
    assert host.run(answer(source, port, sport, cookie)) == TX


def offender(host, source):
    return host.kernel.offender(address.parse(source))


@pytest.mark.parametrize("tags", ((), ((f.ETH_8021Q, 5),)), ids=("plain", "vlan"))
@pytest.mark.parametrize("payload", (b"", bytes(500)), ids=("bare", "data"))
@pytest.mark.parametrize("options", (b"", b"\2\4\5\xb4\4\2\1\1"), ids=("short", "options"))
@pytest.mark.parametrize("source", (A, C))
def test_a_challenge_is_a_right_syn_ack(host, source, options, payload, tags):
    scan(host, source)
    frame = challenged(host, source, 443, 40001, seq=0x12345678, options=options, payload=payload, tags=tags)
    network, own = 14 + 4 * len(tags), traffic.HOST6 if ":" in source else traffic.HOST4
    assert frame[:12] == SCANNER + harness.MAC and frame[12:network] == syn(source, tags=tags)[12:network]
    packet, segment = frame[network:-20], frame[-20:]
    if ":" in source:
        assert len(packet) == 40
        assert struct.unpack_from("!IHBB", packet) == (6 << 28, 20, f.TCP, 64)
        assert packet[8:] == f.packed(own) + f.packed(source)
    else:
        assert len(packet) == 20 and f.checksum(packet) == 0
        assert struct.unpack_from("!BBHHHBB", packet) == (0x45, 0, 40, 0, 0x4000, 64, f.TCP)
        assert packet[12:] == f.packed(own) + f.packed(source)
    pseudo = f.packed(own) + f.packed(source) + struct.pack("!II", 20, f.TCP)
    assert f.checksum(pseudo + segment) == 0
    sport, dport, _, ack, doff, flags, window, _, urgent = struct.unpack("!HHIIBBHHH", segment)
    assert (sport, dport, doff, flags, urgent) == (443, 40001, 5 << 4, f.SYN | f.ACK, 0) and window
    assert ack == 0x12345679


def test_every_connection_has_a_cookie_of_its_own(host):
    cookies = set()
    for place in range(64):
        scan(host, traffic.source(place))
        cookies.add(cookie_in(challenged(host, traffic.source(place), seq=0xFFFFFFFF)))
    assert len(cookies) == 64


@pytest.mark.parametrize("source", (A, C))
def test_the_connection_of_who_answers_is_reset_at_once(host, source):
    scan(host, source)
    cookie = cookie_in(challenged(host, source))
    verdict, frame = harness.answer(host.kernel.prog, answer(source, 443, 40000, cookie))
    own = traffic.HOST6 if ":" in source else traffic.HOST4
    sport, dport, seq, _, doff, flags = struct.unpack_from("!HHIIBB", frame, len(frame) - 20)
    assert verdict == TX and (sport, dport, doff, flags) == (443, 40000, 5 << 4, f.RST)
    assert seq == (cookie + 1) & 0xFFFFFFFF
    assert f.checksum(f.packed(own) + f.packed(source) + struct.pack("!II", 20, f.TCP) + frame[-20:]) == 0
    assert host.run(answer(source, 443, 40000, cookie)) == PASS  # once; the stack resets the rest


@pytest.mark.parametrize("source", (A, C))
def test_who_answers_is_proven_and_its_blocks_grow(host, source):
    scan(host, source)
    prove(host, source)
    assert offender(host, source).proven_ns == START and offender(host, source).unanswered == 0
    lengths, now = [], START
    for number in range(8):
        now += 2 * HOUR
        host.at(now)
        scan(host, source, *range(3 * number + 10, 3 * number + 13))
        lengths.append((traffic.block(host, source).until_ns - now) // SECOND)
        assert host.run(syn(source)) == DROP  # nothing is left to ask
    assert lengths == [120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert [alert.evidence for alert in host.scans()] == [0] + [1] * 8
    assert host.counters().proven == 1 and host.counters().dropped[4 + (":" in source)] == 1


def test_who_does_not_answer_is_asked_twice_and_blocked_for_a_minute_each_time(host):
    now, verdicts = START, []
    for _ in range(4):
        host.at(now)
        scan(host, A)
        assert traffic.block(host, A).until_ns == now + 60 * SECOND
        verdicts += [host.run(syn(A)) for _ in range(4)]
        now += 61 * SECOND
    assert verdicts == [TX, TX] + [DROP] * 14
    assert host.counters().dropped[::2] == (14, 0, 2)
    assert [alert.evidence for alert in host.scans()] == [0] * 4


@pytest.mark.parametrize("first_ns, block_ns, wanted", ((0, 0, 60), (600 * SECOND, 0, 60), (5 * SECOND, 9 * SECOND, 5)))
def test_no_block_of_an_unproven_source_lasts(host, first_ns, block_ns, wanted):
    host.change(rules=RULES, first_ns=first_ns, block_ns=block_ns)
    for number, now in enumerate((START, START + HOUR)):
        host.at(now)
        scan(host, A, *range(10 * number, 10 * number + 3))
        assert traffic.block(host, A).until_ns == now + wanted * SECOND


def test_a_proven_source_can_be_blocked_for_ever(host):
    host.change(rules=RULES, first_ns=0, block_ns=0)
    scan(host, A)
    prove(host, A)
    host.at(START + HOUR)
    scan(host, A)
    assert traffic.block(host, A).until_ns == 0


def test_the_same_closed_ports_again_do_not_make_a_block_longer(host):
    """Who asks again and again for services that are down is no worse each time."""
    scan(host, A)
    prove(host, A)
    lengths, now = [], START
    for ports in ((1, 2, 3), (3, 1, 2), (2, 3, 1), (2, 3, 4), (1, 2, 3), (4, 1, 2), (5, 1, 2)):
        now += HOUR
        host.at(now)
        scan(host, A, *ports)
        lengths.append((traffic.block(host, A).until_ns - now) // SECOND)
    assert lengths == [60, 60, 60, 120, 120, 120, 240]


@pytest.mark.parametrize("wrong", ("port", "sport", "source", "number", "destination"))
def test_an_answer_is_good_for_its_four_tuple_only(host, wrong):
    scan(host, A)
    scan(host, B)
    cookie = cookie_in(challenged(host, A))
    challenged(host, B)
    source, port, sport = A, 443, 40000
    if wrong == "port":
        port = 444
    if wrong == "sport":
        sport = 40001
    if wrong == "source":
        source = B
    if wrong == "number":
        cookie ^= 1
    if wrong == "destination":
        host.local("10.9.0.2")
        segment = f.tcp(A, "10.9.0.2", 40000, 443, f.ACK, ack=cookie + 1 & 0xFFFFFFFF)
        frame = f.ethernet(f.ipv4(A, "10.9.0.2", segment), harness.MAC, SCANNER)
    else:
        frame = answer(source, port, sport, cookie)
    assert host.run(frame) == PASS and host.counters().acks == (1, 0)
    assert not offender(host, A).proven_ns and not offender(host, B).proven_ns
    assert host.counters().proven == 0


@pytest.mark.parametrize("flags", (f.RST, f.RST | f.ACK, f.SYN | f.ACK, f.FIN | f.ACK, f.PSH | f.ACK))
def test_no_other_segment_is_an_answer(host, flags):
    """A reset carries the number that it answers: whoever gets one unasked sends it, too."""
    scan(host, A)
    cookie = cookie_in(challenged(host, A))
    for seq in (0x1001, cookie, cookie + 1 & 0xFFFFFFFF):
        assert host.run(answer(A, 443, 40000, cookie, flags=flags, seq=seq)) == PASS
    assert not offender(host, A).proven_ns and host.counters().acks == (0, 0)


def test_an_answer_without_a_challenge_proves_nothing(host):
    scan(host, A)
    cookie = cookie_in(challenged(host, A))
    host.kernel.forget_offences(address.parse(A))
    host.run(answer(A, 443, 40000, cookie))
    assert offender(host, A) is None
    host.kernel.blocks.remove(address.parse_prefix(A))
    host.at(START + SECOND)
    scan(host, A, 4, 5, 6)
    host.run(answer(A, 443, 40000, cookie))
    assert not offender(host, A).proven_ns


def test_the_key_before_still_counts_and_the_one_before_that_does_not(host):
    for turns, proven in ((1, True), (2, False)):
        source = traffic.source(turns)
        scan(host, source)
        cookie = cookie_in(challenged(host, source))
        for _ in range(turns):
            host.kernel.turn_cookies()
        host.run(answer(source, 443, 40000, cookie))
        assert bool(offender(host, source).proven_ns) == proven


def test_guessing_makes_a_source_contested(host):
    scan(host, A)
    cookie = cookie_in(challenged(host, A))
    for guess in range(1, 5):
        host.run(answer(A, 443, 40000, cookie + guess))
    assert offender(host, A).contested and host.counters().acks == (4, 0)
    host.run(answer(A, 443, 40000, cookie))
    assert not offender(host, A).proven_ns and host.run(syn(A)) == DROP
    host.at(START + HOUR)
    scan(host, A)
    assert host.run(syn(A)) == DROP and traffic.block(host, A).until_ns == START + HOUR + 60 * SECOND
    assert (host.counters().proven, host.counters().contested) == (0, 1)


def test_three_wrong_answers_in_a_keys_life_are_forgiven(host):
    scan(host, A)
    cookie = cookie_in(challenged(host, A))
    for _ in range(5):
        for guess in range(1, 4):
            host.run(answer(A, 443, 40000, cookie + guess))
        host.kernel.turn_cookies()
    assert not offender(host, A).contested
    prove(host, A)
    assert offender(host, A).proven_ns


def test_a_proof_is_forgotten_with_the_offences(host):
    scan(host, A)
    prove(host, A)
    for now, evidence in ((START + 60 * SECOND + DAY - 1, 1), (START + 3 * DAY, 0)):
        host.at(now)
        scan(host, A)
        assert host.scans()[-1].evidence == evidence
    assert traffic.block(host, A).until_ns == START + 3 * DAY + 60 * SECOND


def test_observe_sends_nothing(host):
    host.change(rules=RULES, observe=1)
    scan(host, A)
    assert [host.run(syn(A)) for _ in range(3)] == [PASS] * 3
    assert host.run(answer(A, 443, 40000, 5)) == PASS and host.counters().acks == (1, 0)
    assert offender(host, A).unanswered == 0


def test_without_proof_nobody_is_asked_and_blocks_grow(host):
    host.change(rules=RULES, proof=0)
    for number, (now, length) in enumerate(((START, 60), (START + HOUR, 120))):
        host.at(now)
        scan(host, A, *range(10 * number, 10 * number + 3))
        assert host.run(syn(A)) == DROP and traffic.block(host, A).until_ns == now + length * SECOND


def test_before_there_is_a_key_nobody_is_asked(host):
    libbpf.update(host.kernel.maps["cookies"], bytes(4), bytes(program.COOKIES.size))
    scan(host, A)
    assert host.run(syn(A)) == DROP and offender(host, A).unanswered == 0


def test_at_an_open_port_nobody_is_asked(host):
    """A handshake that is not the service's would be a lie to who wants the service."""
    host.kernel.put_ports((443,), ())
    scan(host, A)
    assert host.run(syn(A)) == DROP and host.run(syn(A, port=444)) == TX


def test_acknowledgments_of_nothing_are_counted_and_let_through(host):
    """As ACK and window scans send; but in turn only, since most that look like them have a connection."""
    host.kernel.put_ports((80,), ())  # of which somebody else has the connections
    for source in (A, C):
        assert [host.run(answer(source, port, 40000, 5)) for port in (79, 80, 81)] == [PASS] * 3
    assert host.counters().acks == (2, 2) and host.counters().syns == host.counters().probes == (0, 0)
    host.kernel.allow_looks(1)
    assert [host.run(answer(A, 79, 40000, 5)) for _ in range(3)] == [PASS] * 3
    assert host.counters().acks == (3, 2)
    assert host.kernel.track(address.parse(A)).ports == ()


def test_the_answer_to_a_challenge_needs_no_turn(host):
    """Acknowledgments of others, which may be many, do not keep a client from proving itself."""
    scan(host, A)
    host.kernel.allow_looks(0)
    cookie = cookie_in(challenged(host, A))
    assert host.run(answer(B, 443, 40000, cookie)) == PASS and host.counters().acks == (0, 0)
    host.at(START + SECOND - 1)
    assert host.run(answer(A, 443, 40000, cookie)) == TX and offender(host, A).proven_ns
    host.at(START + SECOND)
    assert host.run(answer(A, 443, 40000, cookie)) == PASS and host.counters().acks == (1, 0)


@pytest.mark.parametrize("shape", ("options", "payload"))
def test_other_acknowledgments_are_not_looked_at(host, shape):
    fields = {"options": b"\1" * 12} if shape == "options" else {"payload": b"x"}
    assert host.run(answer(A, 443, 40000, 5, **fields)) == PASS and host.counters().acks == (0, 0)


def test_a_scan_without_a_rule_and_a_listed_source_are_not_asked(host):
    host.kernel.put_ports((80, 81, 82), ())
    scan(host, A, 80, 81, 82)
    host.source(B, rules.BLOCK)
    assert [host.run(syn(source)) for source in (A, B)] == [DROP] * 2


@pytest.mark.parametrize("what", ("options", "fragment", "extension"))
def test_an_odd_syn_is_dropped_without_an_answer(host, what):
    segment = f.tcp(A, traffic.HOST4, 40000, 443)
    packet = f.ipv4(A, traffic.HOST4, segment, options=b"\1" * 4)
    if what == "fragment":
        packet = f.ipv4(A, traffic.HOST4, segment + bytes(4), more=True)
    source = A
    if what == "extension":
        source, segment = C, f.tcp(C, traffic.HOST6, 40000, 443)
        packet = f.ipv6(C, traffic.HOST6, segment, [f.Extension(f.DESTINATION, bytes(7))])
    scan(host, source)
    assert host.run(f.ethernet(packet, harness.MAC, SCANNER)) == DROP
    assert offender(host, source).unanswered == 0


def test_challenges_are_rate_limited(host):
    """A hundred at once, then one every 10 ms a CPU: however many are forged, the host is no mirror."""
    sources = [traffic.source(number) for number in range(60)]
    for source in sources:
        scan(host, source)
    with harness.one_cpu():
        verdicts = [host.run(syn(source)) for source in sources for _ in range(2)]
        assert verdicts.count(TX) == 100 and verdicts[:100] == [TX] * 100
        host.at(START + SECOND // 20)
        assert [host.run(syn(source)) for source in sources for _ in range(2)].count(TX) == 5


def test_a_storm_does_not_protect_who_is_proven(host):
    host.change(rules=RULES, storm=3)
    scan(host, A)
    prove(host, A)
    host.at(START + HOUR)
    for number in range(4):
        scan(host, traffic.source(number))
    scan(host, A)
    assert [alert.block for alert in host.scans()] == [event.BLOCKED] * 4 + [event.FROZEN, event.BLOCKED]
    assert host.run(syn(A)) == DROP


def test_a_proven_source_is_no_part_of_a_storm(host):
    host.change(rules=RULES, storm=2)
    for number, source in enumerate((A, B, C)):
        host.at(START + number * HOUR)  # each in a minute of its own
        scan(host, source)
        prove(host, source)
    host.at(START + 4 * HOUR)
    blocks = []
    for source in (A, B, C, traffic.source(1)):
        scan(host, source)
        blocks.append(host.scans()[-1].block)
    assert blocks == [event.BLOCKED] * 4


@pytest.mark.parametrize("seed", range(6))
def test_random_proofs_have_the_oracles_blocks(host, seed):
    chance = random.Random(seed)
    first, longest = chance.choice(((60, 3600), (600, 3600), (7, 50), (0, 0), (30, 0)))
    lengths = detection.Blocks(longest * SECOND, first * SECOND, 60 * SECOND, 4 * HOUR, proof=True)
    host.change(rules=RULES, block_ns=lengths.longest_ns, first_ns=lengths.first_ns, forget_ns=lengths.forget_ns)
    guard = detection.Guard(detection.Detector(3, 60 * SECOND, 64, [detection.Rule(*RULES[0])]), lengths)
    now, evidence, base = START, set(), 0
    for _ in range(250):
        base = chance.choice((base, base, base + 1, 64 * base % 65000))
        now += chance.choice((SECOND, 70 * SECOND, 10 * 60 * SECOND, HOUR, 5 * HOUR))
        host.at(now)
        source = chance.choice((A, C))
        packed = address.parse(source)
        for port in range(base, base + 3):
            wanted = guard.judge(packed, port, now)
            passes = wanted.action in (detection.PASS, detection.SCAN)
            assert (host.run(traffic.frame(source, port)) == PASS) == passes
        if wanted.action == detection.SCAN:
            assert traffic.block(host, source).until_ns == wanted.until_ns
            evidence.add(host.scans()[-1].evidence)
            if traffic.block(host, source).challenges > 0 and chance.random() < 0.5:
                prove(host, source)
                guard.prove(packed)
        if chance.random() < 0.2:
            host.kernel.blocks.remove(address.single(packed))
            guard.blocks.pop(address.single(packed), None)
    assert evidence == {0, 1}


def test_a_network_is_blocked_only_for_what_one_does_who_has_answered(host):
    """Whoever forges addresses of a network does not have all of it blocked, nor any for longer than a minute: not
    even where somebody in it has answered.
    """
    host.change(network_bits=64, network_mask=thresholds.network_mask(64), rules=RULES)
    one, two, three = (f"2001:db8:7::{number}" for number in (1, 2, 3))
    scan(host, one)
    scan(host, two, 4, 5, 6)
    assert [(alert.length, alert.until_ns) for alert in host.scans()] == [(128, START + 60 * SECOND)] * 2
    prove(host, two)
    scan(host, three, 7, 8, 9)
    alert, = host.scans()
    assert (alert.length, alert.until_ns, alert.evidence) == (128, START + 60 * SECOND, event.EVIDENCE.index("seen"))
    host.at(START + 61 * SECOND)
    scan(host, two, 11, 12, 13)
    alert, = host.scans()
    assert (alert.length, alert.until_ns) == (64, START + (61 + 480) * SECOND)
    assert alert.evidence == event.EVIDENCE.index("proven")
    host.at(START + 180 * SECOND)
    assert traffic.send(host, one, 10) == traffic.send(host, "2001:db8:7::4", 10) == [DROP]
