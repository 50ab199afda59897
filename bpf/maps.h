/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the maps hold. packetwatch/kernel.py mirrors these layouts; a test compares them.
 * 64-bit members first or padded by hand: the layout is the same on every architecture.
 */
#ifndef PACKETWATCH_MAPS_H
#define PACKETWATCH_MAPS_H

#ifndef ATTACHMENTS
#define ATTACHMENTS 64 /* interfaces watched at a time */
#endif
#define ATTACHMENT_CELLS 256 /* open addressing by ifindex, power of two */
#define ATTACHMENT_PROBES 8
#ifndef TRACKERS
#define TRACKERS 65536 /* sources tracked; power of two */
#endif
#define TRACKER_WAYS 4
#define TRACKER_SETS (TRACKERS / TRACKER_WAYS)
#ifndef BLOCKS
#define BLOCKS 65536
#endif
#define PREFIXES 65536
#ifndef SUSPECTS
#define SUSPECTS 16384 /* sources that met a closed port; power of two */
#endif
#define SUSPECT_WAYS 4
#define SUSPECT_SETS (SUSPECTS / SUSPECT_WAYS)
#define SUSPECT_SLOTS 16 /* closed ports remembered of each; power of two */
#define OFFENDERS 16384
#define CLIENTS 16384
#define RULES 8 /* that block; power of two */
/* Blocks of one source that may double the next one; where they may last for ever, the eleventh does. */
#define DOUBLINGS 16
#define DOUBLINGS_FOREVER 10
#define DOUBLINGS_MASK 31 /* for the verifier: no shift goes beyond */
#define UNPROVEN_NS 60000000000ULL /* the longest block of a source that may be forged */
#define CHALLENGES 2 /* that a source may leave without an answer */
#define WRONG_ANSWERS 3 /* in the life of a key; with one more it is contested */
#define CHALLENGE_GAP_NS 10000000ULL /* between two of a CPU, on the long run */
#define CHALLENGE_BURST_NS 1000000000ULL /* how far they may run ahead of that */
#define QUIET_NS 250000000ULL /* after which a record is told at once: who reads has gone to sleep */
#define ANSWER_NS 1000000000ULL /* in which the answer to a challenge is waited for */
#define TICKS_LATE_NS 1000000000ULL /* by how much ticks may be late, where virtual CPUs wait for real ones */
#define PORT_BYTES 8192 /* a bit for each port */
#ifndef FOLDS
#define FOLDS 2048 /* per level, of both generations */
#endif

#define ADDRESS_BITS 128

enum family { FAMILY_IPV4, FAMILY_IPV6, FAMILIES };

enum drop_reason { DROP_SCAN, DROP_LIST, DROP_CHALLENGE, DROP_REASONS };

struct rule { /* so many distinct ports within the window */
	__u64 window_ns;
	__u32 ports;
	__u32 closed; /* 1: closed ports alone count, at most SUSPECT_SLOTS of them */
};

struct settings {
	__u64 window_ns;
	__u64 block_ns; /* the longest block; 0: forever */
	__u64 first_ns; /* of a source that has not been blocked before; 0: forever */
	__u64 open_ns; /* of a scan that no rule matches: there is no closed port to show for it; 0: forever */
	__u64 forget_ns; /* after its last block a source counts as new again */
	__u64 keep_ns; /* the longest window over all ports */
	__u64 suspect_ns; /* the longest window of a rule that counts closed ports; 0: there is none */
	__u64 fold_interval_ns; /* between two single records; 0: never fold */
	__u64 fold_burst_ns; /* burst * interval */
	__u64 seed; /* of the tracker's hash; secret */
	__u64 lists_generation; /* from 1; grows after every change of `local` or `sources` */
	union address network_mask; /* `network_bits` of them */
	__u64 wakeup_mask; /* a CPU wakes the reader when its count of records has none of these bits */
	__u32 ports; /* 2..SCAN_SLOTS */
	__u32 observe;
	__u32 generation; /* 0 or 1: which fold counters are being written */
	__u32 count_closed; /* closed ports alone make a scan */
	__u32 storm; /* blocks of unproven sources in a minute above which no more are made; 0: no limit */
	__u32 proof; /* a source must answer a challenge before a block of it may last */
	__u32 network_bits; /* of IPv6: whose blocks grow is blocked with the network of so many; ADDRESS_BITS: alone */
	__u32 rule_count;
	struct rule rules[RULES];
};

enum attachment_flag {
	ATTACHMENT_USED = 1 << 0,
	ATTACHMENT_LOOPBACK = 1 << 1,
	ATTACHMENT_MAC_TEST = 1 << 2,
};

struct attachment {
	__u64 fold_ns; /* GCRA's theoretical arrival time; advisory, so updated without a lock */
	__u64 probe_ns; /* the same of probes */
	__u64 last_ns; /* of the last single record */
	__u32 ifindex;
	__u16 id; /* index into `counters` */
	__u8 flags; /* enum attachment_flag */
	__u8 reserved;
	__u16 mac[ETH_ALEN / 2];
	__u16 reserved_end;
};

struct counters {
	__u64 syns[FAMILIES]; /* = recorded + folded + dropped + lost */
	__u64 recorded[FAMILIES];
	__u64 folded[FAMILIES];
	__u64 dropped[DROP_REASONS * FAMILIES]; /* [reason * FAMILIES + family] */
	__u64 lost[FAMILIES]; /* no room in the ring `connections` */
	__u64 would_drop[FAMILIES]; /* observe: recorded or folded, and would have been dropped */
	__u64 scans[FAMILIES];
	__u64 probes[FAMILIES]; /* segments that no connection has, dropped in enforce */
	__u64 acks[FAMILIES]; /* bare acknowledgments that no connection has, of those that were looked at */
	__u64 probes_untold[FAMILIES]; /* of them: beyond the rate of single records, or no room in the ring */
	__u64 malformed[MALFORMED_REASONS];
	__u64 ignored[IGNORED_REASONS];
	__u64 evicted; /* trackers replaced inside their window */
	__u64 suspects_evicted; /* the same of suspects, inside the longest window of a rule */
	__u64 blocked; /* blocks made or prolonged */
	__u64 refused; /* blocks that found the table full */
	__u64 frozen; /* blocks not made in a storm of them */
	__u64 alerts_lost; /* no room in the ring `alerts` */
	__u64 proven; /* challenges that were answered */
	__u64 contested; /* sources that gave too many wrong answers */
};

struct prefix_key {
	__u32 length; /* bits; IPv4 counts from 96 */
	__be32 network[4]; /* not a union address, which would be aligned to 8 bytes behind a hole */
};

#define MARKS 65536 /* sums of 16 bits */

struct marks { /* set where an entry of `sources` may cover an address; written before the entry */
	__u8 bits[FAMILIES][MARKS / 8];
};

#define RECENT_SOURCES 256 /* power of two */

struct recent { /* per CPU: an answer of a trie, good while the generation is */
	__u64 generation;
	union address address;
};

enum source_flag { SOURCE_OWN = 1 << 0, SOURCE_ALLOW = 1 << 1, SOURCE_BLOCK = 1 << 2 };

struct option_bytes {
	__be32 words[IP_OPTION_ROOM / 4];
};

struct source {
	__u64 until_ns; /* of SOURCE_BLOCK, CLOCK_BOOTTIME; 0: forever */
	__u64 dropped; /* SYNs */
	__u32 flags; /* enum source_flag */
	__u32 length; /* of the prefix: user space, too, finds the longest match only */
};

struct block { /* of a source that scanned; what people block stands in `sources` */
	__u64 until_ns; /* CLOCK_BOOTTIME; 0: forever */
	__u64 since_ns;
	__u64 dropped; /* SYNs; in observe: that would have been */
	__u16 attachment;
	__u16 length; /* bits of the key: ADDRESS_BITS, or settings.network_bits of a whole network */
	__s32 challenges; /* that may still be sent to the source */
};

/* A port and when it was last reached: time (CLOCK_BOOTTIME, low bits cut) | closed | port. */
#define SLOT_TIME (~0x1ffffULL)
#define SLOT_CLOSED 0x10000ULL

struct way { /* of a set: whom it remembers */
	union address saddr;
	__u64 last_ns; /* 0: free */
};

struct tracker {
	struct way of;
	__u64 blocked_ns; /* when a block was earned here; see track() */
	__u64 scan_ns; /* of the last scan, low bits cut: what came till then counts no more for the next */
	__u32 count; /* of slots in use */
	__u32 reserved;
	__u64 slots[SCAN_SLOTS]; /* newest first */
};

struct tracker_set {
	struct bpf_spin_lock lock;
	__u32 reserved;
	struct tracker ways[TRACKER_WAYS];
};

struct suspect {
	struct way of;
	__u32 count;
	__u32 reserved;
	__u64 slots[SUSPECT_SLOTS]; /* closed ports, newest first */
};

struct suspect_set {
	struct bpf_spin_lock lock;
	__u32 reserved;
	struct suspect ways[SUSPECT_WAYS];
};

/* Of a source, of IPv6 of a network, that was blocked by a rule; the table forgets those blocked longest ago. */
struct offender {
	__u64 until_ns; /* of its last block */
	__u64 proven_ns; /* when it answered a challenge; 0: never */
	__u64 prover; /* the address that did, of a network: its hash_of() */
	__u64 ports; /* of all its offences, a bit for each; see which_port() */
	__u32 count; /* of blocks */
	__u32 doublings; /* of their length */
	__u32 unanswered; /* challenges */
	__u32 wrong; /* answers, in the life of the key number `life` */
	__u32 life;
	__u32 contested; /* too many of them: it will not be proven */
};

struct scratch { /* per CPU */
	struct recent local;
	struct option_bytes options; /* a copy of them, for the header walk */
	struct offender nobody; /* all zero: too large for the stack */
	struct packet packet; /* being judged: to the verifier anything, however it came here */
	__u64 tick; /* of the kernel, in which the clock was read last for blocks */
	__u64 tick_ns; /* what it said */
};

struct looks { /* at bare acknowledgments */
	__u64 left; /* of the turns that user space gives */
	__u64 until_ns; /* till when those of blocked sources need no turn: somebody has been challenged */
};

#define COOKIE_KEYS 2

struct cookies {
	struct cookie_key
		keys[COOKIE_KEYS]; /* the present one, and the one before, whose answers may be on their way */
	__u32 life; /* which key this is; 0: there is none yet */
	__u32 reserved;
};

struct client { /* of a source that has completed a handshake; the table forgets whom it has not seen for longest */
	__u64 first_ns; /* CLOCK_BOOTTIME */
	__u64 last_ns;
};

struct storm { /* of blocks; a limit on volume, so updated without a lock */
	__u64 since_ns; /* begin of the minute that is counted */
	__u64 count;
};

struct known_ports { /* by configuration; the bit of port 9 is bit 1 of byte 1 */
	__u8 open[PORT_BYTES];
	__u8 honeypot[PORT_BYTES];
};

struct fold_key { /* fields that a level does not tell apart are 0 */
	union address saddr;
	__be16 dport;
	__u16 attachment;
	__u32 generation;
};

struct fold {
	__u64 count;
	__u64 since_ns;
};

#endif
