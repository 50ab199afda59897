# SPDX-License-Identifier: Apache-2.0
"""The kernel half under test: frames in by BPF_PROG_TEST_RUN, verdicts, counters, records and the ledger out.

Needs the right to load programs. Attaches nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from packetwatch import address, detection, event, libbpf, loader, program
from packetwatch.kernel import ZERO, Attachment, Counters, Kernel, KernelRule, KernelSettings
from packetwatch.metricnames import FAMILIES, IGNORED, MALFORMED
from packetwatch.rules import Source

ROOT = Path(__file__).resolve().parents[2]
LO = 1  # ifindex of lo in every network namespace
DROP, PASS, TX = 1, 2, 3  # enum xdp_action
MAC = bytes.fromhex("020000000001")
SECOND = 1_000_000_000
PRODUCT = program.Parameters(trackers=4096, blocks=1024, ring_bytes=1 << 20, headers="auto")
CLOCKED = program.Parameters(trackers=256, blocks=64, ring_bytes=1 << 16, headers="auto")
SETTINGS = KernelSettings(
    window_ns=60 * SECOND,
    block_ns=3600 * SECOND,
    first_ns=3600 * SECOND,
    open_ns=3600 * SECOND,
    forget_ns=86400 * SECOND,
    keep_ns=60 * SECOND,
    suspect_ns=0,
    fold_interval_ns=0,
    fold_burst_ns=0,
    seed=0x1234567,
    lists_generation=1,
    network_bits=128,
    network_mask=b"\xff" * 16,
    wakeup_mask=0,
    ports=3,
    observe=0,
    generation=0,
    count_closed=0,
    storm=0,
    proof=0,
    rules=(),
)
#: Bytes of a set of trackers and of one of suspects, and of what stands before a way's slots.
TRACKER_HEAD, SUSPECT_HEAD = program.TRACKER_HEAD.size, program.SUSPECT_HEAD.size
TRACKER_SET = 8 + 4 * (TRACKER_HEAD + 8 * event.SCAN_SLOTS)
SUSPECT_SET = 8 + 4 * (SUSPECT_HEAD + 8 * detection.SUSPECT_SLOTS)
#: Instructions that the verifier may walk, of a million; where it gives none, it is no Linux since 5.16.
VERIFIED = range(10_000, 400_000)
KEY_BYTES = {
    **dict.fromkeys(("local", "sources"), program.PREFIX_KEY.size),
    **dict.fromkeys(("blocks", "spared", "offenders", "clients"), 16),
    **dict.fromkeys(("folds_by_source", "folds_by_port"), program.FOLD_KEY.size),
}

#: A clock that a test sets; at 0 it is the real one.
CLOCK = """
BPF_ARRAY(test_clock, __u64, 1);
static __always_inline __u64 test_now(void)
{
	int zero = 0;
	__u64 *now = test_clock.lookup(&zero);

	return now && *now ? *now : bpf_ktime_get_boot_ns();
}
#define NOW_NS() test_now()
#line 1 "packetwatch.c"
"""


class _TestRunOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


def test_run(prog, frame, ifindex=LO, repeat=1):
    """The verdict on a frame that arrives on an interface of this network namespace."""
    context = struct.pack("=6I", 0, len(frame), 0, ifindex, 0, 0)  # struct xdp_md
    options = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=frame,
        data_size_in=len(frame),
        ctx_in=context,
        ctx_size_in=len(context),
        repeat=repeat,
    )
    libbpf._call("bpf_prog_test_run_opts", prog, ctypes.byref(options))
    return options.retval


def answer(prog, frame, ifindex=LO):
    """The verdict, and the frame as the program leaves it."""
    context = struct.pack("=6I", 0, len(frame), 0, ifindex, 0, 0)
    room = ctypes.create_string_buffer(len(frame) + 256)
    options = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=frame,
        data_size_in=len(frame),
        data_out=ctypes.addressof(room),
        data_size_out=len(room),
        ctx_in=context,
        ctx_size_in=len(context),
        repeat=1,
    )
    libbpf._call("bpf_prog_test_run_opts", prog, ctypes.byref(options))
    return options.retval, room.raw[: options.data_size_out]


class Rig:
    """A loaded program and what has come out of it since the last reset."""

    def __init__(self, kernel, clock=None):
        self.kernel = kernel
        self.clock = clock
        self.reset()

    def reset(self):
        """As new: all tables empty, one attachment (number 0, on lo), the default settings."""
        kernel = self.kernel
        for name, size in KEY_BYTES.items():
            for key in list(libbpf.keys(kernel.maps[name], size)):
                libbpf.delete(kernel.maps[name], key)
        kernel.sources.mark_only(())
        empty_array(kernel, "trackers", kernel.parameters.trackers // 4, TRACKER_SET)
        empty_array(kernel, "suspects", min(program.SUSPECTS, kernel.parameters.trackers) // 4, SUSPECT_SET)
        empty_array(kernel, "storm", 1, 16)
        empty_array(kernel, "challenge_rate", 1, 8 * libbpf.possible_cpus())
        kernel.allow_looks(0)
        empty_array(kernel, "wide_blocks", 1, 8)
        kernel.put_ports((), ())
        empty_array(kernel, "attachments", program.ATTACHMENT_CELLS, program.ATTACHMENT.size)
        empty_array(kernel, "folds_by_interface", program.ATTACHMENTS * 2, 16 * libbpf.possible_cpus())
        for attachment in range(program.ATTACHMENTS):
            kernel.clear_counters(attachment)
        kernel.lists_changed()
        self.settings()
        self.attach()
        self.time_ns = 0
        if self.clock is not None:
            self.at(1000 * SECOND)
        drain(kernel.connections, event.connections)
        drain(kernel.probes, event.probes)
        drain(kernel.alerts, event.alerts)
        self.seen, self.seen_probes, self.seen_scans, self.seen_folds = [], [], [], []

    def settings(self, **changes):
        """The default settings but for these; `block_ns` is the length of every block unless others are given."""
        if "block_ns" in changes:
            changes = {"first_ns": changes["block_ns"], "open_ns": changes["block_ns"], **changes}
        self._apply(SETTINGS, lists_generation=self.kernel.settings().lists_generation, **changes)

    def change(self, **changes):
        self._apply(self.kernel.settings(), **changes)

    def _apply(self, settings, **changes):
        block_rules = [detection.Rule(*rule) for rule in changes.pop("rules", ())]
        changes["rules"] = tuple(KernelRule(rule.window_ns, rule.ports, int(rule.closed)) for rule in block_rules)
        settings = settings._replace(**changes)
        keep_ns, suspect_ns = detection.windows(settings.window_ns, block_rules)
        self.kernel.apply(settings._replace(keep_ns=keep_ns, suspect_ns=suspect_ns))

    def attach(self, number=0, ifindex=LO, mac=MAC, loopback=False, mac_test=True):
        self.kernel.put_attachment(Attachment(number, ifindex, mac, loopback, mac_test))

    def local(self, *prefixes):
        for text in prefixes:
            self.kernel.local.add(address.parse_prefix(text))
        self.kernel.lists_changed()

    def source(self, prefix, flags, until_ns=0):
        self.kernel.sources.put(address.parse_prefix(prefix), Source(flags, until_ns))
        self.kernel.lists_changed()

    def at(self, ns):
        """Sets the clock (CLOCK_BOOTTIME as the program sees it)."""
        self.time_ns = ns
        libbpf.update(self.clock, bytes(4), struct.pack("=Q", ns))

    def run(self, frame, ifindex=LO, repeat=1):
        return test_run(self.kernel.prog, frame, ifindex, repeat)

    def counters(self, attachment=None):
        """Of one attachment, or of all."""
        if attachment is not None:
            return self.kernel.counters(attachment)
        total = ZERO
        for number in range(program.ATTACHMENTS):
            total = total.plus(self.kernel.counters(number))
        return total

    def records(self):
        """The connections recorded since the last call."""
        new = drain(self.kernel.connections, event.connections)
        self.seen += new
        return new

    def probes(self):
        new = drain(self.kernel.probes, event.probes)
        self.seen_probes += new
        return new

    def scans(self):
        """The alerts raised since the last call."""
        new = drain(self.kernel.alerts, event.alerts)
        self.seen_scans += new
        return new

    def folds(self, generation):
        new = self.kernel.take_folds(generation, range(program.ATTACHMENTS))
        self.seen_folds += new
        return new

    def check_ledger(self):
        """Every SYN has one fate, in the counters and in what came out."""
        for number in range(program.ATTACHMENTS):
            unbalanced = imbalance(self.kernel.counters(number))
            assert not unbalanced, f"attachment {number}: {unbalanced}"
        for generation in (0, 1):
            self.folds(generation)
        self.records()
        self.scans()
        total = self.counters()
        assert sum(total.recorded) == len(self.seen)
        assert sum(total.folded) == sum(fold.count for fold in self.seen_folds)
        completed = sum(bool(alert.flags & event.SCAN) for alert in self.seen_scans)
        assert completed <= sum(total.scans) <= completed + total.alerts_lost
        self.probes()
        assert sum(total.probes) == len(self.seen_probes) + sum(total.probes_untold)


def imbalance(c: Counters):
    """What the ledger of one attachment does not account for, by family."""
    sums = {
        family: c.syns[i] - c.recorded[i] - c.folded[i] - sum(c.dropped[i :: len(FAMILIES)]) - c.lost[i]
        for i, family in enumerate(FAMILIES)
    }
    return {family: rest for family, rest in sums.items() if rest}


def changes(before, after):
    """The counters that differ, as {name: difference}; malformed and ignored ones by their reason."""
    result = {}
    for name, old, new in zip(Counters._fields, before, after):
        if isinstance(old, int):
            result[name] = new - old
            continue
        words = {"malformed": MALFORMED, "ignored": IGNORED}.get(name) or [f"{name}[{i}]" for i in range(len(old))]
        result.update((word, n - o) for word, o, n in zip(words, old, new))
    return {word: difference for word, difference in result.items() if difference}


def drain(ring, decode):
    found = []
    while True:
        part = ring.peek(1 << 16)
        if not part:
            return found
        found += decode(part)
        ring.advance(part)


def empty_array(kernel, name, entries, size):
    for index in range(entries):
        libbpf.update(kernel.maps[name], index.to_bytes(4, sys.byteorder), bytes(size))


@contextlib.contextmanager
def one_cpu():
    """For what each CPU counts for itself."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def load_product():
    loaded = loader.load(PRODUCT)
    return Kernel(loaded.prog, loaded.maps, PRODUCT, loaded.handshakes)


def load_clocked():
    """The same source with a clock that can be set; (Kernel, descriptor of the clock)."""
    text = CLOCK + (program.SOURCES / "packetwatch.c").read_text()
    prog, *maps = load_text(text, CLOCKED, program.FUNCTION, [*program.MAPS, "test_clock"])
    return Kernel(prog, dict(zip(program.MAPS, maps)), CLOCKED), maps[-1]


def load_text(text, parameters, function, maps, kind="XDP"):
    """Compiles a text of the test's in a child, as the loader does; descriptors of the function and the maps."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    job = {"text": text, "parameters": parameters._asdict(), "function": function, "maps": maps, "kind": kind}
    child = subprocess.run(
        [sys.executable, "-m", "tests.bpf.harness", str(theirs.fileno())],
        input=json.dumps(job).encode(),
        pass_fds=[theirs.fileno()],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    theirs.close()
    assert child.returncode == 0, child.stderr.decode(errors="replace")
    with ours:
        return socket.recv_fds(ours, 16, len(maps) + 1)[1]


def compile_text(channel):
    import bcc

    job = json.load(sys.stdin)
    parameters = program.Parameters(**job["parameters"])
    loader._choose_headers(parameters.headers, program.SOURCES)
    libbpf.raise_memlock()
    built = bcc.BPF(text=job["text"], cflags=loader._flags(parameters, program.SOURCES))
    function = built.load_func(job["function"], getattr(bcc.BPF, job["kind"]))
    fds = [function.fd] + [loader._map_fd(built, name) for name in job["maps"]]
    socket.send_fds(socket.socket(fileno=channel), [b"."], fds)


if __name__ == "__main__":
    compile_text(int(sys.argv[1]))
    os._exit(0)
