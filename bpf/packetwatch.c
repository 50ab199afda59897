/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map and every map operation: local? -> block -> allow -> track -> judge -> emit.
 * bcc rewrites map methods in the main file only, so they all stand here.
 */
#include "packet.h"
#include "event.h"
#include "maps.h"
#ifdef REPLAY
#include "replay.h"
#endif

BPF_ARRAY(settings, struct settings, 1);
BPF_ARRAY(attachments, struct attachment, ATTACHMENT_CELLS);
BPF_PERCPU_ARRAY(counters, struct counters, ATTACHMENTS);
BPF_F_TABLE("lpm_trie", struct prefix_key, __u32, local, PREFIXES, BPF_F_NO_PREALLOC);
BPF_PERCPU_ARRAY(recent_local, struct recent, 1);
BPF_PERCPU_ARRAY(recent_unlisted, struct recent, RECENT_SOURCES);
BPF_F_TABLE("lpm_trie", struct prefix_key, struct source, sources, PREFIXES, BPF_F_NO_PREALLOC);
BPF_ARRAY(marks, struct marks, 1);
BPF_TABLE("hash", union address, struct block, blocks, BLOCKS);
BPF_ARRAY(trackers, struct tracker_set, TRACKER_SETS);
BPF_TABLE("hash", struct fold_key, struct fold, folds_by_source, FOLDS);
BPF_TABLE("hash", struct fold_key, struct fold, folds_by_port, FOLDS);
BPF_PERCPU_ARRAY(folds_by_interface, struct fold, ATTACHMENTS * 2);
BPF_PERCPU_ARRAY(options, struct option_bytes, 1);
BPF_RINGBUF_OUTPUT(connections, CONNECTIONS_PAGES);
BPF_RINGBUF_OUTPUT(alerts, ALERTS_PAGES);

#ifndef NOW_NS
#define NOW_NS() bpf_ktime_get_boot_ns() /* tests set a clock of their own */
#endif
#ifndef REPLAY
#define FRAME_OFFSET 0
#define INGRESS(ctx) (ctx)->ingress_ifindex
#define SOURCE_OF(p) (&(p)->saddr)
#endif

/* How long a SYN may trail, on another CPU, the block that its source has earned. */
#define BLOCK_RACE_NS 100000000ULL
/* How long it may be that the block is not written yet; afterwards people have removed it. */
#define BLOCK_WRITE_NS 1000000ULL

enum verdict { VERDICT_PASS, VERDICT_SCAN, VERDICT_BLOCKED, VERDICT_LISTED, VERDICT_MARTIAN };

struct judgement {
	struct settings *set;
	struct attachment *at;
	struct counters *count;
	__u64 now;
	__u32 family; /* enum family */
	__u8 flags; /* enum event_flag */
};

static __always_inline struct attachment *find_attachment(__u32 ifindex)
{
	for (int i = 0; i < ATTACHMENT_PROBES; i++) {
		int cell = (ifindex + i) & (ATTACHMENT_CELLS - 1);
		struct attachment *at = attachments.lookup(&cell);

		if (!at)
			return 0;
		if (at->ifindex == ifindex && at->flags & ATTACHMENT_USED)
			return at;
	}
	return 0;
}

/*
 * The packet's bounds, read again: for the verifier new pointers, with nothing known of what was
 * checked through the old ones, so that it merges the ways that lead here.
 */
static __always_inline void *frame_start(struct xdp_md *ctx)
{
	return (void *)(long)*(volatile __u32 *)&ctx->data + FRAME_OFFSET;
}

static __always_inline void *frame_end(struct xdp_md *ctx)
{
	return (void *)(long)*(volatile __u32 *)&ctx->data_end;
}

/* A group address is never ours: TCP takes no broadcast. */
static __always_inline enum walk walk_options(struct xdp_md *ctx, struct packet *p)
{
	__be32 *words = frame_start(ctx) + (p->options_off & 0x7f);
	struct option_bytes *copy;
	int zero = 0;

	copy = options.lookup(&zero);
	if (!copy)
		return WALK_OTHER;
	for (int i = 0; i < IP_OPTION_BYTES / 4; i++) {
		if ((void *)(words + i + 1) > frame_end(ctx))
			break; /* of what follows the options there need not be as much */
		copy->words[i] = words[i];
	}
	return judge_options((__u8 *)copy, p);
}

static __always_inline int is_foreign_mac(struct xdp_md *ctx, const struct attachment *at)
{
	__u8 *mac = frame_start(ctx);

	if ((void *)(mac + ETH_ALEN) > frame_end(ctx))
		return 0;
	if (mac[0] & 1 || !(at->flags & ATTACHMENT_MAC_TEST))
		return mac[0] & 1;
	return mac[5] != at->mac[5] || mac[4] != at->mac[4] || mac[3] != at->mac[3] || mac[2] != at->mac[2] ||
	       mac[1] != at->mac[1] || mac[0] != at->mac[0];
}

/* Nobody outside can choose addresses that meet in one place. */
static __always_inline __u64 hash_of(const union address *a, __u64 seed)
{
	__u64 h = (a->halves[0] ^ seed) * 0x9e3779b97f4a7c15ULL;

	h ^= h >> 29;
	h = (h ^ a->halves[1]) * 0xbf58476d1ce4e5b9ULL;
	h ^= h >> 32;
	return h * 0x94d049bb133111ebULL;
}

#ifdef REPLAY
/*
 * Where a capture is of many hosts, a source is another one to each of them: the tables of sources
 * know it by a hash of 128 bits of both addresses, the lists and the records as it is.
 */
static __always_inline void tell_hosts_apart(struct xdp_md *ctx, struct packet *p, __u64 seed)
{
	p->source = p->saddr;
	if (!read_header(ctx).hosts)
		return;
	p->saddr.halves[0] = hash_of(&p->source, hash_of(&p->daddr, seed));
	p->saddr.halves[1] = hash_of(&p->source, hash_of(&p->daddr, ~seed));
}
#endif

/*
 * Each CPU remembers answers of the two tries, which cost more than all other lookups together.
 * User space ends them all with a new generation after every change of either trie. It is read
 * before the lookup, so that what is remembered under it is not older than it.
 */
static __always_inline int is_recent(const struct recent *recent, const union address *a, __u64 generation)
{
	return recent->generation == generation && recent->address.halves[1] == a->halves[1] &&
	       recent->address.halves[0] == a->halves[0];
}

/* Whether the destination is this host: nearly every SYN goes to the same few addresses. */
static __always_inline int is_local(const union address *daddr, const struct settings *set)
{
	__u64 generation = set->lists_generation;
	struct prefix_key key;
	int zero = 0;
	struct recent *recent = recent_local.lookup(&zero);

	if (!recent)
		return 0;
	if (is_recent(recent, daddr, generation))
		return 1;
	key.length = 128;
	__builtin_memcpy(key.network, daddr, sizeof(key.network));
	if (!local.lookup(&key))
		return 0;
	recent->address = *daddr;
	recent->generation = generation;
	return 1;
}

static __always_inline int is_marked(const __u8 *bits, __u16 mark)
{
	return bits[mark >> 3] >> (mark & 7) & 1;
}

/* Whether an entry of the lists may cover the source: exact where it says no, see packetwatch/marks.py. */
static __always_inline int may_be_listed(const struct packet *p)
{
	const union address *a = SOURCE_OF(p);
	__u64 address = a->halves[0] ^ a->halves[1];
	__u32 network = p->ipv6 ? a->words[0] : a->words[3] & bpf_htonl(0xffff0000);
	int zero = 0;
	const struct marks *all = marks.lookup(&zero);
	const __u8 *bits;

	if (!all)
		return 1;
	bits = all->bits[p->ipv6 & 1];
	address ^= address >> 32;
	address ^= address >> 16;
	network ^= network >> 16;
	return is_marked(bits, bpf_ntohs(address)) | is_marked(bits, bpf_ntohs(network));
}

/* The source's entry in the lists, which most sources do not have. */
static __always_inline struct source *find_source(const struct packet *p, __u64 hash, const struct settings *set)
{
	__u64 generation = set->lists_generation;
	struct prefix_key key;
	int index = hash & (RECENT_SOURCES - 1);
	struct recent *recent;
	struct source *source;

	if (!may_be_listed(p))
		return 0;
	recent = recent_unlisted.lookup(&index);
	if (!recent || is_recent(recent, SOURCE_OF(p), generation))
		return 0;
	key.length = 128;
	__builtin_memcpy(key.network, SOURCE_OF(p), sizeof(key.network));
	source = sources.lookup(&key);
	if (!source) {
		recent->address = *SOURCE_OF(p);
		recent->generation = generation;
	}
	return source;
}

static __always_inline int in_force(__u64 until_ns, __u64 now)
{
	return !until_ns || now < until_ns;
}

static __always_inline void count_fold_rest(const struct judgement *j)
{
	int index = j->at->id * 2 + (j->set->generation & 1);
	struct fold *fold = folds_by_interface.lookup(&index);

	if (!fold)
		return;
	if (!fold->count)
		fold->since_ns = j->now;
	fold->count++;
}

/* The finest level with room takes the SYN; the last one always has. */
static __always_inline void fold_connection(const struct packet *p, const struct judgement *j)
{
	struct fold_key key = {
		.saddr = p->saddr, .dport = p->dport, .attachment = j->at->id, .generation = j->set->generation
	};
	struct fold fresh = { .count = 1, .since_ns = j->now }, *fold;

	j->count->folded[j->family]++;
	fold = folds_by_source.lookup(&key);
	if (!fold) {
		if (!folds_by_source.insert(&key, &fresh))
			return;
		fold = folds_by_source.lookup(&key); /* another CPU was first, or no room */
	}
	if (fold) {
		lock_xadd(&fold->count, 1);
		return;
	}
	key.saddr.halves[0] = 0;
	key.saddr.halves[1] = 0;
	fold = folds_by_port.lookup(&key);
	if (!fold) {
		if (!folds_by_port.insert(&key, &fresh))
			return;
		fold = folds_by_port.lookup(&key);
	}
	if (fold)
		lock_xadd(&fold->count, 1);
	else
		count_fold_rest(j);
}

/* GCRA. Two CPUs may both pass one gap: the rate is a limit on volume, no count depends on it. */
static __always_inline int is_over_rate(const struct judgement *j)
{
	__u64 interval = j->set->fold_interval_ns, due = j->at->fold_ns;

	if (!interval)
		return 0;
	if (due < j->now)
		due = j->now;
	due += interval;
	if (due - j->now > j->set->fold_burst_ns)
		return 1;
	j->at->fold_ns = due;
	return 0;
}

static __always_inline void record_connection(const struct packet *p, const struct judgement *j)
{
	struct connection_event *event;
	__u64 wakeup;

	if (is_over_rate(j)) {
		fold_connection(p, j);
		return;
	}
	event = connections.ringbuf_reserve(sizeof(*event));
	if (!event) {
		j->count->lost[j->family]++;
		return;
	}
	event->boot_ns = j->now;
	__builtin_memcpy(event->saddr, SOURCE_OF(p), sizeof(event->saddr));
	__builtin_memcpy(event->daddr, &p->daddr, sizeof(event->daddr));
	event->sport = p->sport;
	event->dport = p->dport;
	event->attachment = j->at->id;
	event->flags = j->flags;
	event->reserved = 0;
	j->count->recorded[j->family]++;
	wakeup = j->count->recorded[j->family] & j->set->wakeup_mask ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP;
	connections.ringbuf_submit(event, wakeup);
}

/*
 * A block that is in force stays as it is, and its end is told; a full table refuses. Returns an
 * enum alert_block.
 */
static __always_inline __u8 block_source(const struct packet *p, const struct judgement *j, __u64 *until_ns)
{
	struct block fresh = { .until_ns = *until_ns, .since_ns = j->now, .attachment = j->at->id };
	union address key = p->saddr;
	struct block *old;

	if (!blocks.insert(&key, &fresh))
		return ALERT_BLOCKED;
	old = blocks.lookup(&key);
	if (!old) {
		j->count->refused++;
		return ALERT_REFUSED;
	}
	if (in_force(old->until_ns, j->now))
		*until_ns = old->until_ns;
	else
		blocks.update(&key, &fresh);
	return ALERT_BLOCKED;
}

/* Whether the source is blocked, each SYN counted where the block stands. */
static __always_inline int is_blocked(const struct packet *p, const struct judgement *j)
{
	struct block *block = blocks.lookup((union address *)&p->saddr);

	if (!block || !in_force(block->until_ns, j->now))
		return 0;
	lock_xadd(&block->dropped, 1);
	return 1;
}

/* A SYN that was faster than the block writes it itself, so that its drop is counted there. */
static __always_inline void count_late_drop(const struct packet *p, const struct judgement *j, __u64 blocked_ns)
{
	struct block fresh = { .since_ns = blocked_ns, .dropped = 1, .attachment = j->at->id };
	union address key = p->saddr;

	if (is_blocked(p, j) || j->now > blocked_ns + BLOCK_WRITE_NS)
		return;
	if (j->set->block_ns)
		fresh.until_ns = blocked_ns + j->set->block_ns;
	if (blocks.insert(&key, &fresh))
		is_blocked(p, j);
}

static __always_inline struct tracker *choose_way(struct tracker_set *set, const struct packet *p)
{
	struct tracker *oldest = &set->ways[0];

#pragma unroll
	for (int i = 0; i < TRACKER_WAYS; i++) {
		struct tracker *way = &set->ways[i];

		if (way->saddr.halves[0] == p->saddr.halves[0] && way->saddr.halves[1] == p->saddr.halves[1])
			return way;
		if (way->last_ns < oldest->last_ns)
			oldest = way;
	}
	return oldest;
}

/*
 * The rule: a move-to-front list of (last time, port), newest first, ended by a 0. Shifting stops
 * at the same port, at the end, or at a port that has left the window (all behind it have too):
 * where it stops is the number of distinct ports inside the window. Returns that number.
 */
static __always_inline __u32 move_to_front(struct tracker *way, __u64 now, __u16 port, __u64 window)
{
	__u64 carry;

	now &= ~0xffffULL;
	carry = now | port;
	for (int i = 0; i < SCAN_SLOTS; i++) {
		__u64 old = way->slots[i];

		way->slots[i] = carry;
		if (!old || now - (old & ~0xffffULL) >= window) {
			if (i + 1 < SCAN_SLOTS)
				way->slots[i + 1] = 0;
			return i + 1;
		}
		if ((__u16)old == port)
			return i + 1;
		carry = old;
	}
	return SCAN_SLOTS;
}

static __always_inline void copy_ports(__u16 *ports, const __u64 *slots, __u32 count)
{
	for (__u32 i = 0; i < SCAN_SLOTS; i++) {
		__u32 at = i;

		barrier_var(at); /* else clang counts down from `count`, and the verifier has no bound */
		if (i >= count)
			break;
		ports[at & (SCAN_SLOTS - 1)] = slots[at & (SCAN_SLOTS - 1)];
	}
}

/*
 * The order between CPUs is that of the lock: a SYN that takes it after the one that completed
 * the scan is blocked even if the block has not reached `blocks` yet. Once that can no longer be
 * the reason, the block has ended or was removed, and the source starts afresh.
 */
static __always_inline enum verdict track(const struct packet *p, const struct judgement *j, __u64 hash,
					  struct alert_event *alert, __u64 *blocked_ns)
{
	int index = (hash >> 32) & (TRACKER_SETS - 1);
	struct tracker_set *set = trackers.lookup(&index);
	__u64 now = j->now, window = j->set->window_ns;
	__u32 evicted = 0, reached;
	enum verdict verdict = VERDICT_PASS;
	struct tracker *way;

	if (!set)
		return VERDICT_PASS;
	bpf_spin_lock(&set->lock);
	way = choose_way(set, p);
	if (way->saddr.halves[0] != p->saddr.halves[0] || way->saddr.halves[1] != p->saddr.halves[1]) {
		evicted = way->last_ns && now - way->last_ns < window;
		way->saddr = p->saddr;
		way->last_ns = 0;
		way->blocked_ns = 0;
		way->slots[0] = 0;
	}
	if (now < way->last_ns)
		now = way->last_ns; /* this CPU read the clock before the other one did */
	way->last_ns = now;
	if (way->blocked_ns && now - way->blocked_ns < BLOCK_RACE_NS) {
		verdict = VERDICT_BLOCKED;
		*blocked_ns = way->blocked_ns;
		goto unlock;
	}
	way->blocked_ns = 0;
	reached = move_to_front(way, now, bpf_ntohs(p->dport), window);
	if (reached >= j->set->ports) {
		verdict = VERDICT_SCAN;
		__builtin_memset(alert, 0, sizeof(*alert));
		/* Read again: its comparison with `reached` taught the verifier another bound on each of 64 ways. */
		copy_ports(alert->ports, way->slots, *(volatile __u32 *)&j->set->ports);
		alert->port_count = j->set->ports;
		way->slots[0] = 0;
		way->blocked_ns = now;
	}
unlock:
	bpf_spin_unlock(&set->lock);
	j->count->evicted += evicted;
	return verdict;
}

/* The first thing after a scan: until the block stands, other CPUs have only the tracker to go by. */
static __always_inline void block_scanner(const struct packet *p, const struct judgement *j, struct alert_event *alert)
{
	alert->until_ns = j->set->block_ns ? j->now + j->set->block_ns : 0;
	alert->block = block_source(p, j, &alert->until_ns);
	j->count->scans[j->family]++;
}

static __always_inline void raise_alert(const struct packet *p, const struct judgement *j, struct alert_event *alert)
{
	alert->boot_ns = j->now;
	__builtin_memcpy(alert->saddr, SOURCE_OF(p), sizeof(alert->saddr));
	__builtin_memcpy(alert->daddr, &p->daddr, sizeof(alert->daddr));
	alert->attachment = j->at->id;
	alert->flags = j->flags | (j->set->observe ? EVENT_WOULD_DROP : 0);
	if (alerts.ringbuf_output(alert, sizeof(*alert), 0))
		j->count->alerts_lost++;
}

/* Blocks come before the lists: user space takes every source that is allowed out of `blocks`. */
static __always_inline enum verdict judge(const struct packet *p, struct judgement *j, struct alert_event *alert,
					  __u64 *blocked_ns)
{
	struct source *source;
	__u64 hash;

	if (is_blocked(p, j))
		return VERDICT_BLOCKED;
	hash = hash_of(&p->saddr, j->set->seed);
	source = find_source(p, hash, j->set);
	if (source) {
		if (source->flags & SOURCE_OWN && !(j->at->flags & ATTACHMENT_LOOPBACK))
			return VERDICT_MARTIAN;
		if (source->flags & SOURCE_ALLOW) {
			j->flags |= EVENT_ALLOWED;
			return VERDICT_PASS;
		}
		if (source->flags & SOURCE_BLOCK && in_force(source->until_ns, j->now)) {
			lock_xadd(&source->dropped, 1);
			return VERDICT_LISTED;
		}
	}
	return track(p, j, hash, alert, blocked_ns);
}

static __always_inline int act(const struct packet *p, struct judgement *j)
{
	struct alert_event alert;
	__u64 blocked_ns = 0;
	enum verdict verdict;

	verdict = judge(p, j, &alert, &blocked_ns);
	if (verdict == VERDICT_MARTIAN) {
		j->count->ignored[IGNORED_MARTIAN]++;
		return XDP_PASS;
	}
	j->count->syns[j->family]++;
	if (verdict == VERDICT_SCAN)
		block_scanner(p, j, &alert);
	if (blocked_ns)
		count_late_drop(p, j, blocked_ns);
	if (verdict == VERDICT_BLOCKED || verdict == VERDICT_LISTED) {
		if (!j->set->observe) {
			__u32 reason = verdict == VERDICT_LISTED ? DROP_LIST : DROP_SCAN;

			j->count->dropped[reason * FAMILIES + j->family]++;
			return XDP_DROP;
		}
		j->count->would_drop[j->family]++;
		j->flags |= EVENT_WOULD_DROP;
	}
	record_connection(p, j);
	if (verdict == VERDICT_SCAN)
		raise_alert(p, j, &alert);
	return XDP_PASS;
}

static __always_inline void count_malformed(struct counters *count, __u8 reason)
{
	if (reason < MALFORMED_REASONS)
		count->malformed[reason]++;
}

int packetwatch(struct xdp_md *ctx)
{
	struct packet packet;
	struct judgement j;
	enum walk walk;
	__be16 proto = 0;
	int id, zero = 0;
	__u64 off;

	off = walk_tags(frame_start(ctx), frame_end(ctx), &proto);
	walk = walk_network(frame_start(ctx), frame_end(ctx), off, proto, &packet);
	if (walk == WALK_OPTIONS)
		walk = walk_options(ctx, &packet);
	if (walk == WALK_OTHER)
		return XDP_PASS;
	j.at = find_attachment(INGRESS(ctx));
	if (!j.at)
		return XDP_PASS;
	id = j.at->id;
	j.count = counters.lookup(&id);
	j.set = settings.lookup(&zero);
	if (!j.count || !j.set)
		return XDP_PASS;
	if (walk == WALK_MALFORMED) {
		count_malformed(j.count, packet.reason);
		return XDP_PASS;
	}
	if (walk == WALK_IGNORED) {
		j.count->ignored[IGNORED_SOURCE_ROUTE]++;
		return XDP_PASS;
	}
	if (is_foreign_mac(ctx, j.at)) {
		j.count->ignored[IGNORED_FOREIGN_MAC]++;
		return XDP_PASS;
	}
	if ((packet.ipv6 && is_mapped(&packet.daddr)) || !is_local(&packet.daddr, j.set)) {
		j.count->ignored[IGNORED_NOT_LOCAL]++;
		return XDP_PASS;
	}
	if (is_martian(&packet, j.at->flags & ATTACHMENT_LOOPBACK)) {
		j.count->ignored[IGNORED_MARTIAN]++;
		return XDP_PASS;
	}
#ifdef REPLAY
	tell_hosts_apart(ctx, &packet, j.set->seed);
#endif
	j.family = packet.ipv6 ? FAMILY_IPV6 : FAMILY_IPV4;
	j.flags = packet.ipv6 ? EVENT_IPV6 : 0;
	j.now = NOW_NS();
	return act(&packet, &j);
}
