/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The records that cross the rings: the only layouts shared with user space.
 * packetwatch/event.py holds the same layouts as struct formats; a test
 * compares sizes and offsets. Only add at the end, and bump EVENT_ABI.
 */
#ifndef PACKETWATCH_EVENT_H
#define PACKETWATCH_EVENT_H

#define EVENT_ABI 1

#ifndef SCAN_SLOTS
#define SCAN_SLOTS 64 /* distinct ports remembered per source */
#endif

enum event_flag {
	EVENT_IPV6 = 1 << 0,
	EVENT_ALLOWED = 1 << 1, /* source is on the allow list: not judged */
	EVENT_WOULD_DROP = 1 << 2, /* observe mode: enforce would have dropped it */
};

/* One new connection. Ring `connections`; addresses are IPv6 or v4-mapped. */
struct connection_event {
	__u64 boot_ns; /* CLOCK_BOOTTIME */
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 sport;
	__be16 dport;
	__u16 attachment;
	__u8 flags; /* enum event_flag */
	__u8 reserved;
};

enum alert_block {
	ALERT_NO_BLOCK = 0,
	ALERT_BLOCKED = 1, /* the source is in `blocks` until `until_ns` */
	ALERT_REFUSED = 2, /* the block table was full */
};

/* One recognised scan. Ring `alerts`, which connections cannot crowd out. */
struct alert_event {
	__u64 boot_ns; /* of the SYN that completed the scan */
	__u64 until_ns; /* CLOCK_BOOTTIME; 0: forever */
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 attachment;
	__u8 flags; /* enum event_flag */
	__u8 block; /* enum alert_block */
	__u16 port_count;
	__u16 reserved;
	__u16 ports[SCAN_SLOTS]; /* host byte order, newest first */
};

_Static_assert(sizeof(struct connection_event) == 48, "connection_event");
_Static_assert(sizeof(struct alert_event) == 56 + 2 * SCAN_SLOTS, "alert_event");

#endif
