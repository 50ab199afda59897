/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The records that cross the rings: the only layouts shared with user space.
 * packetwatch/event.py holds the same layouts as struct formats; a test
 * compares sizes and offsets. Only add at the end, and bump EVENT_ABI.
 */
#ifndef PACKETWATCH_EVENT_H
#define PACKETWATCH_EVENT_H

#define EVENT_ABI 3

#ifndef SCAN_SLOTS
#define SCAN_SLOTS 64 /* distinct ports remembered per source */
#endif

enum event_flag {
	EVENT_IPV6 = 1 << 0,
	EVENT_ALLOWED = 1 << 1, /* source is on the allow list: not judged */
	EVENT_WOULD_DROP = 1 << 2, /* observe mode: enforce would have dropped it */
	EVENT_OPEN = 1 << 3, /* the port has a listener */
	EVENT_CLOSED = 1 << 4, /* it has none; neither: not looked up */
	EVENT_SCAN = 1 << 5, /* of an alert: a scan was completed */
};

/* One new connection, or one probe. Rings `connections` and `probes`; addresses are IPv6 or v4-mapped. */
struct connection_event {
	__u64 boot_ns; /* CLOCK_BOOTTIME */
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 sport;
	__be16 dport;
	__u16 attachment;
	__u8 flags; /* enum event_flag */
	__u8 tcp_flags; /* of a probe; 0 too where a fragment ends before them */
};

enum alert_block {
	ALERT_NO_BLOCK = 0,
	ALERT_BLOCKED = 1, /* the source is in `blocks` until `until_ns` */
	ALERT_REFUSED = 2, /* the block table was full */
	ALERT_FROZEN = 3, /* too many new blocks in this minute */
};

/* That the source's packets come from who owns the address. */
enum evidence {
	EVIDENCE_SEEN, /* none: anybody may have forged them */
	EVIDENCE_PROVEN, /* the address has answered a challenge */
};

/* What an alert's rule is, where it is no row of settings.rules, counted from 1. */
#define RULE_NONE 0
#define RULE_HONEYPOT 255

/* One scan, or one source that a rule blocks. Ring `alerts`, which connections cannot crowd out. */
struct alert_event {
	__u64 boot_ns; /* of the segment that completed it */
	__u64 until_ns; /* CLOCK_BOOTTIME; 0: forever */
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 attachment;
	__u8 flags; /* enum event_flag */
	__u8 block; /* enum alert_block */
	__u8 port_count;
	__u8 length; /* bits of `saddr` that the block covers */
	__u8 rule;
	__u8 evidence; /* enum evidence */
	__u16 ports[SCAN_SLOTS]; /* host byte order, newest first */
	__u64 closed; /* bit n: ports[n] was closed */
};

_Static_assert(sizeof(struct connection_event) == 48, "connection_event");
_Static_assert(sizeof(struct alert_event) == 64 + 2 * SCAN_SLOTS, "alert_event");

#endif
