/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map and every map operation: local? -> block -> allow -> open? -> track -> judge -> emit.
 * bcc rewrites map methods in the main file only, so they all stand here.
 */
#include "packet.h"
#include "challenge.h"
#include "event.h"
#include "maps.h"
#ifdef REPLAY
#include "replay.h"
#endif

BPF_ARRAY(settings, struct settings, 1);
BPF_ARRAY(attachments, struct attachment, ATTACHMENT_CELLS);
BPF_PERCPU_ARRAY(counters, struct counters, ATTACHMENTS);
BPF_F_TABLE("lpm_trie", struct prefix_key, __u32, local, PREFIXES, BPF_F_NO_PREALLOC);
BPF_PERCPU_ARRAY(scratch, struct scratch, 1);
BPF_PERCPU_ARRAY(recent_unlisted, struct recent, RECENT_SOURCES);
BPF_F_TABLE("lpm_trie", struct prefix_key, struct source, sources, PREFIXES, BPF_F_NO_PREALLOC);
BPF_ARRAY(marks, struct marks, 1);
BPF_TABLE("hash", union address, struct block, blocks, BLOCKS);
BPF_ARRAY(wide_blocks, __u64, 1); /* 1: there may be some of whole networks */
BPF_F_TABLE("hash", union address, __u32, spared, PREFIXES, BPF_F_NO_PREALLOC);
BPF_ARRAY(trackers, struct tracker_set, TRACKER_SETS);
BPF_ARRAY(suspects, struct suspect_set, SUSPECT_SETS);
BPF_TABLE("lru_hash", union address, struct offender, offenders, OFFENDERS);
BPF_TABLE("lru_hash", union address, struct client, clients, CLIENTS);
BPF_ARRAY(network, __u64, 1); /* cookie of the namespace whose clients they are; 0: all */
BPF_ARRAY(storm, struct storm, 1);
BPF_ARRAY(cookies, struct cookies, 1);
BPF_PERCPU_ARRAY(challenge_rate, __u64, 1);
BPF_ARRAY(looks, struct looks, 1);
BPF_ARRAY(known_ports, struct known_ports, 1);
BPF_TABLE("hash", struct fold_key, struct fold, folds_by_source, FOLDS);
BPF_TABLE("hash", struct fold_key, struct fold, folds_by_port, FOLDS);
BPF_PERCPU_ARRAY(folds_by_interface, struct fold, ATTACHMENTS * 2);
BPF_RINGBUF_OUTPUT(connections, CONNECTIONS_PAGES);
BPF_RINGBUF_OUTPUT(probes, PROBES_PAGES);
BPF_RINGBUF_OUTPUT(alerts, ALERTS_PAGES);

#ifndef NOW_NS
#define NOW_NS() bpf_ktime_get_boot_ns() /* tests set a clock of their own */
#define TICK() bpf_jiffies64()
#else
#define TICK() NOW_NS()
#endif
#ifndef REPLAY
#define FRAME_OFFSET 0
#define INGRESS(ctx) (ctx)->ingress_ifindex
#define SOURCE_OF(p) (&(p)->saddr)
#define HAS_FLOWS 1
#endif

/* How long a SYN may trail, on another CPU, the block that its source has earned. */
#define BLOCK_RACE_NS 100000000ULL
/* How long it may be that the block is not written yet; afterwards people have removed it. */
#define BLOCK_WRITE_NS 1000000ULL
#define MINUTE_NS 60000000000ULL
#define LISTEN 10 /* BPF_TCP_LISTEN */
#define AF_INET6 10 /* linux/socket.h, which is no UAPI */

enum verdict {
	VERDICT_PASS,
	VERDICT_ALERT,
	VERDICT_BLOCKED,
	VERDICT_LISTED,
	VERDICT_MARTIAN,
	VERDICT_FLOW,
	VERDICT_BARE
};

struct finding { /* that a rule matches, or a scan is complete: what an alert tells */
	__u64 until_ns;
	__u64 closed;
	__u64 which; /* a bit for each of the ports, as which_port() has it */
	__u16 ports[SCAN_SLOTS];
	__u16 port_count;
	__u8 flags; /* EVENT_SCAN or none */
	__u8 block; /* enum alert_block */
	__u8 rule;
	__u8 evidence; /* enum evidence */
	__u8 length; /* bits that the block covers */
	__u8 reserved;
};

struct judgement {
	struct settings *set;
	struct attachment *at;
	struct counters *count;
	__u64 now;
	__u32 family; /* enum family */
	__s32 challenges; /* that may still be sent to a source that is blocked */
	__u8 blocked; /* the source is */
	__u8 flags; /* enum event_flag */
	__u8 frozen; /* 1: no blocks are made */
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
	int zero = 0;
	struct scratch *mine = scratch.lookup(&zero);
	struct option_bytes *copy;

	if (!mine)
		return WALK_OTHER;
	copy = &mine->options;
	for (int i = 0; i < IP_OPTION_BYTES / 4; i++) {
		if ((void *)(words + i + 1) > frame_end(ctx))
			break; /* of what follows the options there need not be as much */
		copy->words[i] = words[i];
	}
	return judge_options((__u8 *)copy, p);
}

static __always_inline int is_foreign_mac(struct xdp_md *ctx, const struct attachment *at)
{
	__u16 *mac = frame_start(ctx);

	if ((void *)mac + ETH_ALEN > frame_end(ctx))
		return 0;
	if (*mac & bpf_htons(0x100)) /* to a group */
		return 1;
	return at->flags & ATTACHMENT_MAC_TEST && (mac[0] ^ at->mac[0]) | (mac[1] ^ at->mac[1]) | (mac[2] ^ at->mac[2]);
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
static __always_inline int is_local(const union address *daddr, const struct settings *set, struct recent *recent)
{
	__u64 generation = set->lists_generation;
	struct prefix_key key;

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

static __always_inline int is_listed(const struct source *source, const struct judgement *j)
{
	return source && (source->flags & (SOURCE_BLOCK | SOURCE_ALLOW)) == SOURCE_BLOCK &&
	       in_force(source->until_ns, j->now);
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
static __always_inline int is_over_rate(const struct judgement *j, __u64 *arrival)
{
	__u64 interval = j->set->fold_interval_ns, due = *arrival;

	if (!interval)
		return 0;
	if (due < j->now)
		due = j->now;
	due += interval;
	if (due - j->now > j->set->fold_burst_ns)
		return 1;
	*arrival = due;
	return 0;
}

static __always_inline void fill_event(struct connection_event *event, const struct packet *p,
				       const struct judgement *j)
{
	event->boot_ns = j->now;
	__builtin_memcpy(event->saddr, SOURCE_OF(p), sizeof(event->saddr));
	__builtin_memcpy(event->daddr, &p->daddr, sizeof(event->daddr));
	event->sport = p->sport;
	event->dport = p->dport;
	event->attachment = j->at->id;
	event->flags = j->flags;
	event->tcp_flags = p->tcp_flags;
}

static __always_inline void record_connection(const struct packet *p, const struct judgement *j)
{
	struct connection_event *event;
	__u64 wakeup;

	if (is_over_rate(j, &j->at->fold_ns)) {
		fold_connection(p, j);
		return;
	}
	event = connections.ringbuf_reserve(sizeof(*event));
	if (!event) {
		j->count->lost[j->family]++;
		return;
	}
	fill_event(event, p, j);
	j->count->recorded[j->family]++;
	wakeup = j->count->recorded[j->family] & j->set->wakeup_mask ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP;
	if (j->now - j->at->last_ns >= QUIET_NS)
		wakeup = BPF_RB_FORCE_WAKEUP;
	j->at->last_ns = j->now;
	connections.ringbuf_submit(event, wakeup);
}

/* Probes have a ring of their own: they are no connections, and the account of those is not theirs. */
static __always_inline void record_probe(const struct packet *p, const struct judgement *j)
{
	struct connection_event *event;

	j->count->probes[j->family]++;
	event = is_over_rate(j, &j->at->probe_ns) ? 0 : probes.ringbuf_reserve(sizeof(*event));
	if (!event) {
		j->count->probes_untold[j->family]++;
		return;
	}
	fill_event(event, p, j);
	probes.ringbuf_submit(event, 0);
}

/*
 * Nearly any address can be forged into a scan, so a great many new blocks at once are no great
 * many scanners: from then on until the minute is over nobody else is blocked. Asked before the
 * source is tracked: a tracker that says "blocked" is as good as a block.
 */
static __always_inline __u64 is_storm(const struct judgement *j)
{
	int zero = 0;
	struct storm *minute = storm.lookup(&zero);
	__u64 most = j->set->storm;

	if (!minute)
		return 0;
	return below(0, most) & below(j->now - minute->since_ns, MINUTE_NS) & (below(minute->count, most) ^ 1);
}

static __always_inline void count_block(const struct judgement *j)
{
	int zero = 0;
	struct storm *minute = storm.lookup(&zero);

	if (!minute)
		return;
	if (j->now - minute->since_ns >= MINUTE_NS) {
		minute->since_ns = j->now;
		minute->count = 0;
	}
	lock_xadd(&minute->count, 1);
}

static __always_inline __u64 doubled(__u64 length, __u64 times, __u64 most)
{
	return length > most >> times ? most : length << times;
}

/* Of an IPv6 source its network: whoever has one address there has them all. Of an IPv4 source itself. */
static __always_inline union address network_of(const struct packet *p, const struct settings *set)
{
	__u64 ipv4 = -equal(p->ipv6, 0);
	union address network = p->saddr;

	network.halves[0] &= set->network_mask.halves[0] | ipv4;
	network.halves[1] &= set->network_mask.halves[1] | ipv4;
	return network;
}

/* The bits that a block covers: of its network, once its blocks grow, unless somebody in it is allowed. */
static __always_inline __u16 block_bits(const struct packet *p, const struct settings *set,
					const union address *network, __u64 times)
{
	if (!p->ipv6 || !times || spared.lookup(network))
		return ADDRESS_BITS;
	return set->network_bits;
}

static __always_inline struct offender *find_offender(const struct packet *p, const struct judgement *j)
{
	union address network = network_of(p, j->set);
	struct offender *found = offenders.lookup(&network);

	if (!found || (found->until_ns && j->now >= found->until_ns && j->now - found->until_ns >= j->set->forget_ns))
		return 0;
	return found;
}

/* Others in a network may be forged all the same. */
static __always_inline int is_prover(const struct offender *offender, const struct packet *p, const struct judgement *j)
{
	return offender->proven_ns && offender->prover == hash_of(&p->saddr, j->set->seed);
}

/* Whether the source's address has answered: it is no forger's invention. */
static __always_inline __u8 evidence_of(const struct packet *p, const struct judgement *j,
					const struct offender *offender)
{
	return offender && is_prover(offender, p, j) ? EVIDENCE_PROVEN : EVIDENCE_SEEN;
}

/*
 * The end of a block by a rule: twice as long each time the source goes for ports that its offences
 * were not about (who tries again where a service is down does not), until it has been quiet; but
 * a short one each time where anybody may have forged it. 0: forever. Of IPv6 all sources of a network
 * count together; from the second length on it is the network that is blocked.
 */
static __always_inline __u64 end_of_block(const struct packet *p, const struct judgement *j,
					  const struct finding *found, struct offender *offender, struct block *fresh)
{
	__u64 most = j->set->block_ns, length = j->set->first_ns, which = found->which, times = 0, until = 0;
	union address network = network_of(p, j->set);

	if (!offender) {
		int zero = 0;
		struct scratch *mine = scratch.lookup(&zero);

		if (!mine)
			return j->now + UNPROVEN_NS;
		offenders.update(&network, &mine->nobody);
		offender = offenders.lookup(&network);
		if (!offender)
			return j->now + UNPROVEN_NS;
		offender->ports = which;
	}
	if (which & ~offender->ports && offender->doublings < DOUBLINGS)
		offender->doublings++;
	offender->ports |= which;
	offender->count++;
	if (!j->set->proof || found->evidence == EVIDENCE_PROVEN) {
		times = offender->doublings;
	} else {
		if (!offender->contested)
			fresh->challenges = CHALLENGES - offender->unanswered;
		if (!length || length > UNPROVEN_NS)
			length = UNPROVEN_NS;
	}
	if (length && (most || times < DOUBLINGS_FOREVER))
		until = j->now + doubled(length, times & DOUBLINGS_MASK, most ? most : ~0ULL >> 1);
	offender->until_ns = until;
	fresh->length = block_bits(p, j->set, &network, times);
	return until;
}

/*
 * A block that is in force and lasts longer stays as it is, and its end is told; a full table
 * refuses. Returns an enum alert_block.
 */
static __always_inline __u8 block_source(const struct packet *p, const struct judgement *j, struct block *fresh)
{
	union address key = fresh->length == ADDRESS_BITS ? p->saddr : network_of(p, j->set);
	struct block *old;
	int zero = 0;
	__u64 *wide;

	if (!blocks.insert(&key, fresh))
		goto blocked;
	old = blocks.lookup(&key);
	if (!old) {
		j->count->refused++;
		return ALERT_REFUSED;
	}
	if (!in_force(old->until_ns, j->now)) {
		fresh->dropped += old->dropped; /* user space may not have seen its end, nor told of its last ones */
		blocks.update(&key, fresh);
		goto blocked;
	}
	old->challenges = fresh->challenges;
	if (old->until_ns && (!fresh->until_ns || old->until_ns < fresh->until_ns))
		old->until_ns = fresh->until_ns;
	else
		fresh->until_ns = old->until_ns;
	if (fresh->length < old->length)
		old->length = fresh->length; /* it was of the address that is the network's first */
blocked:
	wide = wide_blocks.lookup(&zero);
	if (wide && fresh->length < ADDRESS_BITS)
		*wide = 1;
	j->count->blocked++;
	return ALERT_BLOCKED;
}

/*
 * Whether a block is in force, as one that does not end soon can tell without the clock: to read it
 * costs as much as all else that a blocked SYN needs. A CPU reads it once in a tick of the kernel.
 */
static __always_inline int is_surely_in_force(struct xdp_md *ctx, const struct block *block, struct scratch *mine)
{
	__u64 tick = TICK();

	if (mine->tick != tick) {
		mine->tick = tick;
		mine->tick_ns = NOW_NS();
	}
	return in_force(block->until_ns, mine->tick_ns + TICKS_LATE_NS);
}

/* That of the source alone, which is given, if it is in force; else that of its network. */
static __always_inline struct block *find_block(const struct packet *p, const struct judgement *j, struct block *block)
{
	union address network;
	int zero = 0;
	__u64 *wide;

	if (block && in_force(block->until_ns, j->now))
		return block;
	if (!p->ipv6)
		return 0;
	wide = wide_blocks.lookup(&zero);
	if (!wide || !*wide)
		return 0;
	network = network_of(p, j->set);
	block = blocks.lookup(&network);
	if (block && block->length == j->set->network_bits && in_force(block->until_ns, j->now))
		return block;
	return 0;
}

/* A SYN that was faster than the block writes it itself, so that its drop is counted there. */
static __always_inline void count_late_drop(const struct packet *p, const struct judgement *j, __u64 blocked_ns)
{
	struct block fresh = { .since_ns = blocked_ns, .dropped = 1, .attachment = j->at->id, .length = ADDRESS_BITS };
	struct block *block = find_block(p, j, blocks.lookup((union address *)&p->saddr));

	if (!block && j->now <= blocked_ns + BLOCK_WRITE_NS) {
		if (j->set->open_ns)
			fresh.until_ns = blocked_ns + j->set->open_ns; /* the other CPU prolongs it */
		if (!blocks.insert((union address *)&p->saddr, &fresh))
			return;
		block = blocks.lookup((union address *)&p->saddr);
	}
	if (block)
		lock_xadd(&block->dropped, 1);
}

/*
 * The source's own way of a set, else the one that has been silent longest. Its place is blurred:
 * for the verifier what follows is one way, not one for each place.
 */
static __always_inline void *choose_way(void *ways, __u32 size, __u32 count, const struct packet *p)
{
	struct way *oldest = ways;
	__u64 place = 0;

#pragma unroll
	for (int i = 0; i < count; i++) {
		struct way *way = ways + i * size;

		if (way->saddr.halves[0] == p->saddr.halves[0] && way->saddr.halves[1] == p->saddr.halves[1]) {
			place = i;
			break;
		}
		if (way->last_ns < oldest->last_ns) {
			oldest = way;
			place = i;
		}
	}
	return ways + (blur(place, p->dport) & (count - 1)) * size;
}

static __always_inline int is_anothers(const struct way *way, const struct packet *p)
{
	return way->saddr.halves[0] != p->saddr.halves[0] || way->saddr.halves[1] != p->saddr.halves[1];
}

/*
 * A list of distinct ports, the one reached last in front. Shifting stops at the same port, at the
 * end, or at a port that has left the window (all behind it have, too). Returns the new count.
 * The n-th slot then tells when n distinct ports were last reached within a window.
 */
static __always_inline __u32 move_to_front(__u64 *slots, __u32 size, __u32 count, __u64 slot, __u64 window)
{
	__u64 carry = slot;

	for (__u32 i = 0; i < size; i++) {
		__u64 old = slots[i];

		slots[i] = carry;
		if (i >= count || (slot & SLOT_TIME) - (old & SLOT_TIME) >= window)
			return i + 1;
		if ((__u16)old == (__u16)slot)
			return count;
		carry = old;
	}
	return size;
}

/*
 * Whether the port is in front already. Then a list that matched nothing before matches nothing now:
 * the others have only grown older. It only takes the new time.
 */
static __always_inline int is_repeated(__u64 *slots, __u32 count, __u64 slot, __u64 window)
{
	__u64 front = slots[0];

	if (!count || (__u16)front != (__u16)slot || (slot & SLOT_TIME) - (front & SLOT_TIME) >= window)
		return 0;
	slots[0] = slot;
	return 1;
}

/*
 * The tests of slots are without branches: each would double the verifier's ways through all that
 * follows. Whether `ports` distinct ones were reached within the window, after `since`, where the
 * question applies (1); else, and with too few slots, none but the first is read, which is at hand.
 */
static __always_inline __u64 has_reached(const __u64 *slots, __u32 size, __u64 count, __u64 ports, __u64 now,
					 __u64 window, __u64 since, __u64 applies)
{
	__u64 enough = applies & below(ports - 1, count);
	__u64 time = slots[(ports - 1) & (size - 1) & -enough] & SLOT_TIME;

	return enough & below(now - time, window) & below(since, time);
}

/* The first rule that these slots match, counted from 1, and its ports; RULE_NONE if there is none. */
static __always_inline __u64 find_rule(const struct settings *set, __u64 closed, const __u64 *slots, __u32 size,
				       __u64 count, __u64 now, __u64 *ports)
{
	__u64 found = RULE_NONE;

	for (int i = RULES - 1; i >= 0; i--) {
		const struct rule *rule = &set->rules[i];
		__u64 applies = below(i, set->rule_count) & equal(rule->closed, closed);
		__u64 hit = has_reached(slots, size, count, rule->ports, now, rule->window_ns, 0, applies);

		found = (found & (hit - 1)) | ((i + 1) & -hit);
		*ports = (*ports & (hit - 1)) | (rule->ports & -hit);
	}
	return found;
}

/* A bit of 64: few ports share one. */
static __always_inline __u64 which_port(__u64 slot)
{
	return ((slot & 0xffff) * 0x9e37 >> 10) & 63;
}

/*
 * All of it, since the kernel takes no record with bytes that nobody wrote; and without a branch,
 * of which each would make a way of its own through all that follows.
 */
static __always_inline void begin_finding(struct finding *found, const __u64 *slots, __u32 size, __u32 count)
{
	__builtin_memset(found, 0, sizeof(*found));
	found->port_count = count;
	for (__u32 i = 0; i < size; i++) {
		__u64 slot = slots[i] & -below(i, count);

		found->ports[i] = slot;
		found->closed |= (slot / SLOT_CLOSED & 1) << i;
		found->which |= below(i, count) << which_port(slot);
	}
}

/*
 * The order between CPUs is that of the lock: a SYN that takes it after the one that earned a
 * block is blocked even if the block has not reached `blocks` yet. Once that can no longer be the
 * reason, the block has ended or was removed.
 */
static __always_inline enum verdict track(const struct packet *p, const struct judgement *j, __u64 hash,
					  struct finding *found, __u64 *blocked_ns)
{
	int index = (hash >> 32) & (TRACKER_SETS - 1);
	struct tracker_set *set = trackers.lookup(&index);
	__u64 now = j->now, tick, slot, count, scan, rule, ports = 0;
	enum verdict verdict = VERDICT_PASS;
	struct tracker *way;
	__u32 evicted = 0;

	if (!set)
		return VERDICT_PASS;
	slot = bpf_ntohs(p->dport) | (j->flags & EVENT_CLOSED ? SLOT_CLOSED : 0);
	bpf_spin_lock(&set->lock);
	merge_ways();
	way = choose_way(set->ways, sizeof(set->ways[0]), TRACKER_WAYS, p);
	merge_ways();
	if (is_anothers(&way->of, p)) {
		evicted = way->of.last_ns && now - way->of.last_ns < j->set->window_ns;
		way->of.saddr = p->saddr;
		way->of.last_ns = 0;
		way->blocked_ns = 0;
		way->scan_ns = 0;
		way->count = 0;
	}
	if (now < way->of.last_ns)
		now = way->of.last_ns; /* this CPU read the clock before the other one did */
	way->of.last_ns = now;
	if (way->blocked_ns && now - way->blocked_ns < BLOCK_RACE_NS) {
		verdict = VERDICT_BLOCKED;
		*blocked_ns = way->blocked_ns;
		goto unlock;
	}
	way->blocked_ns = 0;
	merge_ways();
	tick = now & SLOT_TIME;
	if (is_repeated(way->slots, way->count, tick | slot, j->set->keep_ns))
		goto unlock;
	way->count = move_to_front(way->slots, SCAN_SLOTS, way->count, tick | slot, j->set->keep_ns);
	merge_ways();
	/* Read again: what the shifting taught the verifier of it would make one way of each of 64. */
	count = *(volatile __u32 *)&way->count;
	scan = has_reached(way->slots, SCAN_SLOTS, count, j->set->ports, tick, j->set->window_ns, way->scan_ns, 1);
	rule = find_rule(j->set, 0, way->slots, SCAN_SLOTS, count, tick, &ports);
	merge_ways();
	if (scan | rule) {
		verdict = VERDICT_ALERT;
		ports = (ports & (scan - 1)) | (j->set->ports & -scan);
		begin_finding(found, way->slots, SCAN_SLOTS, ports);
		found->flags = scan * EVENT_SCAN;
		found->rule = rule;
		way->blocked_ns = now & ((__u64)j->frozen - 1);
		way->scan_ns = (way->scan_ns & (scan - 1)) | (tick & -scan);
		way->count = count & -equal(rule, RULE_NONE);
	}
unlock:
	bpf_spin_unlock(&set->lock);
	j->count->evicted += evicted;
	return verdict;
}

/* Of a source that met a closed port: those it has met in the longest window of a rule. */
static __always_inline enum verdict suspect(const struct packet *p, const struct judgement *j, __u64 hash,
					    enum verdict verdict, struct finding *found)
{
	int index = (hash >> 32) & (SUSPECT_SETS - 1);
	struct suspect_set *set = suspects.lookup(&index);
	__u64 now = j->now, tick, slot, count, rule, ports = 0;
	struct suspect *way;
	__u32 evicted = 0;

	if (!set)
		return verdict;
	bpf_spin_lock(&set->lock);
	way = choose_way(set->ways, sizeof(set->ways[0]), SUSPECT_WAYS, p);
	merge_ways();
	if (is_anothers(&way->of, p)) {
		evicted = way->of.last_ns && now - way->of.last_ns < j->set->suspect_ns;
		way->of.saddr = p->saddr;
		way->of.last_ns = 0;
		way->count = 0;
	}
	if (now < way->of.last_ns)
		now = way->of.last_ns;
	way->of.last_ns = now;
	merge_ways();
	tick = now & SLOT_TIME;
	slot = tick | SLOT_CLOSED | bpf_ntohs(p->dport);
	if (is_repeated(way->slots, way->count, slot, j->set->suspect_ns))
		goto unlock;
	way->count = move_to_front(way->slots, SUSPECT_SLOTS, way->count, slot, j->set->suspect_ns);
	merge_ways();
	count = *(volatile __u32 *)&way->count;
	rule = find_rule(j->set, 1, way->slots, SUSPECT_SLOTS, count, tick, &ports);
	if (rule) {
		way->count = 0;
		if (verdict != VERDICT_ALERT || !(found->flags & EVENT_SCAN))
			begin_finding(found, way->slots, SUSPECT_SLOTS, ports);
		found->rule = rule;
		verdict = VERDICT_ALERT;
	}
unlock:
	bpf_spin_unlock(&set->lock);
	j->count->suspects_evicted += evicted;
	return verdict;
}

/* The first thing after a scan: until the block stands, other CPUs have only the tracker to go by. */
static __always_inline void block_scanner(const struct packet *p, const struct judgement *j, struct finding *found)
{
	struct block fresh = { .since_ns = j->now, .attachment = j->at->id, .length = ADDRESS_BITS };
	struct offender *offender;

	if (found->flags & EVENT_SCAN)
		j->count->scans[j->family]++;
	found->until_ns = 0;
	found->length = ADDRESS_BITS;
	if (j->frozen) {
		found->block = ALERT_FROZEN;
		j->count->frozen++;
		return;
	}
	offender = find_offender(p, j);
	found->evidence = evidence_of(p, j, offender);
	if (found->evidence == EVIDENCE_SEEN)
		count_block(j);
	if (found->rule)
		fresh.until_ns = end_of_block(p, j, found, offender, &fresh);
	else if (j->set->open_ns)
		fresh.until_ns = j->now + j->set->open_ns;
	found->block = block_source(p, j, &fresh);
	found->until_ns = fresh.until_ns;
	found->length = fresh.length;
}

static __always_inline void raise_alert(const struct packet *p, const struct judgement *j, const struct finding *found)
{
	struct alert_event *alert = alerts.ringbuf_reserve(sizeof(*alert));

	if (!alert) {
		j->count->alerts_lost++;
		return;
	}
	alert->boot_ns = j->now;
	alert->until_ns = found->until_ns;
	__builtin_memcpy(alert->saddr, SOURCE_OF(p), sizeof(alert->saddr));
	__builtin_memcpy(alert->daddr, &p->daddr, sizeof(alert->daddr));
	alert->attachment = j->at->id;
	alert->flags = found->flags | (j->flags & EVENT_IPV6) | (j->set->observe ? EVENT_WOULD_DROP : 0);
	alert->block = found->block;
	alert->port_count = found->port_count;
	alert->length = found->length;
	alert->rule = found->rule;
	alert->evidence = found->evidence;
	__builtin_memcpy(alert->ports, found->ports, sizeof(alert->ports));
	alert->closed = found->closed;
	alerts.ringbuf_submit(alert, 0);
}

/*
 * What the host's stack has for the segment: EVENT_OPEN where a listener would take it, or people
 * say that something else does; EVENT_CLOSED where nothing would; 0 where a connection has it already.
 */
static __always_inline __u8 port_state(struct xdp_md *ctx, const struct packet *p, const struct known_ports *known)
{
	struct bpf_sock_tuple tuple;
	struct bpf_sock *socket;
	__u64 state = 0, found, listens;
	__u32 size;

	if (is_marked(known->open, bpf_ntohs(p->dport)))
		return (p->bare ^ 1) * EVENT_OPEN; /* whoever serves it has the connections, too */
#ifdef REPLAY
	return replay_port_state(ctx);
#endif
	if (p->ipv6) {
		size = sizeof(tuple.ipv6);
		__builtin_memcpy(tuple.ipv6.saddr, &p->saddr, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &p->daddr, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = p->sport;
		tuple.ipv6.dport = p->dport;
	} else {
		size = sizeof(tuple.ipv4);
		tuple.ipv4.saddr = p->saddr.words[3];
		tuple.ipv4.daddr = p->daddr.words[3];
		tuple.ipv4.sport = p->sport;
		tuple.ipv4.dport = p->dport;
	}
	socket = bpf_skc_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (socket) {
		state = socket->state;
		bpf_sk_release(socket);
	}
	/* One way on from here, not one per answer. */
	listens = equal(state, LISTEN) | (p->probe ^ 1);
	found = below(0, state);
	return (found ^ 1) * EVENT_CLOSED | (found & listens) * EVENT_OPEN;
}

/* Blocks come before the lists: user space takes every source that is allowed out of `blocks`. */
static __always_inline enum verdict judge(struct xdp_md *ctx, const struct packet *p, struct judgement *j,
					  struct finding *found, __u64 *blocked_ns)
{
	enum verdict verdict = VERDICT_PASS;
	struct known_ports *known;
	struct source *source;
	int zero = 0;
	__u64 hash;

	if (j->blocked)
		verdict = VERDICT_BLOCKED;
	hash = hash_of(&p->saddr, j->set->seed);
	source = find_source(p, hash, j->set);
	if (source && source->flags & SOURCE_OWN && !(j->at->flags & ATTACHMENT_LOOPBACK))
		return VERDICT_MARTIAN;
	if (is_listed(source, j)) {
		verdict = VERDICT_LISTED;
		if (!p->probe) {
			lock_xadd(&source->dropped, 1);
			return verdict;
		}
	}
	known = known_ports.lookup(&zero);
	if (!known)
		return VERDICT_PASS;
	verdict = blur(verdict, p->dport); /* one way on from here, not one per answer */
	j->flags |= blur(port_state(ctx, p, known), p->dport);
	if (HAS_FLOWS && p->probe && !(j->flags & (EVENT_OPEN | EVENT_CLOSED)))
		return VERDICT_FLOW;
	if (p->bare)
		return VERDICT_BARE;
	if (verdict != VERDICT_PASS)
		return verdict;
	if (source && source->flags & SOURCE_ALLOW) {
		j->flags |= EVENT_ALLOWED;
		return VERDICT_PASS;
	}
	j->frozen = is_storm(j);
	if (j->frozen) /* not of those who have proven */
		j->frozen = evidence_of(p, j, find_offender(p, j)) == EVIDENCE_SEEN;
	j->frozen = blur(j->frozen, p->dport) & 1;
	if (j->flags & EVENT_CLOSED || !j->set->count_closed)
		verdict = track(p, j, hash, found, blocked_ns);
	if (verdict == VERDICT_BLOCKED)
		return verdict;
	if (j->flags & EVENT_CLOSED && j->set->suspect_ns)
		verdict = suspect(p, j, hash, verdict, found);
	if (is_marked(known->honeypot, bpf_ntohs(p->dport))) {
		if (verdict != VERDICT_ALERT) {
			__u64 slot = bpf_ntohs(p->dport) | (j->flags & EVENT_CLOSED ? SLOT_CLOSED : 0);

			begin_finding(found, &slot, 1, 1);
		}
		found->rule = RULE_HONEYPOT;
		verdict = VERDICT_ALERT;
	}
	return verdict;
}

#ifndef REPLAY
/* Whether this CPU may send one more: the host is no mirror for who forges addresses. */
static __always_inline int may_challenge(const struct packet *p, const struct judgement *j, struct offender *offender)
{
	int zero = 0;
	__u64 *due = challenge_rate.lookup(&zero);
	struct block *block = blocks.lookup((union address *)&p->saddr);
	struct looks *turns = looks.lookup(&zero);
	__u64 next;

	if (!turns || !due || !block || is_prover(offender, p, j) || offender->unanswered >= CHALLENGES)
		return 0;
	next = (*due < j->now ? j->now : *due) + CHALLENGE_GAP_NS;
	if (next - j->now > CHALLENGE_BURST_NS)
		return 0;
	*due = next;
	turns->until_ns = j->now + ANSWER_NS;
	lock_xadd(&block->challenges, -1);
	lock_xadd(&offender->unanswered, 1);
	return 1;
}

/* Whether a segment has the plain form that clients send; if so its numbers. */
static __always_inline int read_numbers(struct xdp_md *ctx, const struct packet *p, __be32 *seq, __be32 *ack)
{
	struct answer4 *four = frame_start(ctx) + (p->network_off & 0x7f);
	struct answer6 *six = (void *)four;

	if ((void *)(four + 1) > frame_end(ctx))
		return 0;
	*seq = four->tcp.seq;
	*ack = four->tcp.ack_seq;
	if (!p->ipv6)
		return four->ip.ihl == 5 && !(four->ip.frag_off & bpf_htons(0x3fff));
	if ((void *)(six + 1) > frame_end(ctx))
		return 0;
	*seq = six->tcp.seq;
	*ack = six->tcp.ack_seq;
	return six->ip.nexthdr == IPPROTO_TCP;
}

static __always_inline int write_answer(struct xdp_md *ctx, const struct packet *p, __be32 seq, __be32 ack, __u16 flags)
{
	__u64 header = p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	int length = p->network_off + header + sizeof(struct tcp_header);
	__u64 present = frame_end(ctx) - frame_start(ctx);
	struct tcp_header *tcp;
	struct answer4 *four;
	struct answer6 *six;
	struct ethhdr *eth;

	barrier_var(present); /* the difference of pointers, not a sum with one of them */
	if (bpf_xdp_adjust_tail(ctx, length - (int)present))
		return 0;
	eth = frame_start(ctx);
	four = frame_start(ctx) + (p->network_off & 0x7f);
	six = (void *)four;
	if ((void *)(eth + 1) > frame_end(ctx) || (void *)(four + 1) > frame_end(ctx))
		return 0;
	swap_macs(eth);
	tcp = &four->tcp;
	if (!p->ipv6) {
		answer_ipv4(&four->ip, p);
	} else {
		if ((void *)(six + 1) > frame_end(ctx))
			return 0;
		answer_ipv6(&six->ip, p);
		tcp = &six->tcp;
	}
	answer_tcp(tcp, p, seq, ack, flags);
	return 1;
}

/*
 * Whether the acknowledgment is that of a challenge, `right` as far as the cookie goes. A source may
 * err a few times only, so that cookies cannot be guessed.
 */
static __always_inline int is_proof(const struct packet *p, const struct judgement *j, struct offender *offender,
				    __u32 life, int right)
{
	if (!offender->unanswered)
		return 0;
	if (right) {
		offender->proven_ns = j->now;
		offender->prover = hash_of(&p->saddr, j->set->seed);
		offender->unanswered = 0;
		j->count->proven++;
		return 1;
	}
	if (offender->life != life) {
		offender->life = life;
		offender->wrong = 0;
	}
	lock_xadd(&offender->wrong, 1);
	if (offender->wrong > WRONG_ANSWERS) {
		offender->contested = 1;
		j->count->contested++;
	}
	return 0;
}

/*
 * Turns a SYN into the challenge, and the acknowledgment that answers one into the reset that ends
 * what the client takes for a connection; 0 where it does not.
 */
static __always_inline int challenge(struct xdp_md *ctx, const struct packet *p, const struct judgement *j)
{
	int zero = 0;
	struct cookies *secret = cookies.lookup(&zero);
	union address network = network_of(p, j->set);
	struct offender *offender = offenders.lookup(&network);
	__u32 answered = bpf_ntohl(p->ack_seq) - 1, cookie = 0, key;
	__u16 flags = TCP_SYN | TCP_ACK;
	__be32 seq, ack;

	if (!secret || !secret->life || !offender || offender->contested || !read_numbers(ctx, p, &seq, &ack))
		return 0;
	for (key = 0; key < COOKIE_KEYS; key++) {
		cookie = cookie_of(&secret->keys[key], p);
		if (!p->bare || cookie == answered)
			break;
	}
	if (p->bare) {
		if (!is_proof(p, j, offender, secret->life, key < COOKIE_KEYS))
			return 0;
		seq = ack;
		ack = 0;
		flags = TCP_RST;
	} else {
		if (!may_challenge(p, j, offender))
			return 0;
		ack = bpf_htonl(bpf_ntohl(seq) + 1);
		seq = bpf_htonl(cookie);
	}
	return write_answer(ctx, p, seq, ack, flags);
}
#endif

/* What becomes of the packet; XDP_TX: see challenge(). */
static __always_inline int act(struct xdp_md *ctx, const struct packet *p, struct judgement *j)
{
	struct finding found;
	__u64 blocked_ns = 0;
	enum verdict verdict;
	int drop;

	verdict = judge(ctx, p, j, &found, &blocked_ns);
	if (verdict == VERDICT_FLOW)
		return XDP_PASS;
	if (verdict == VERDICT_BARE) {
		j->count->acks[j->family]++;
		return j->set->observe ? XDP_PASS : XDP_TX;
	}
	if (verdict == VERDICT_MARTIAN) {
		j->count->ignored[IGNORED_MARTIAN] += !p->probe;
		return XDP_PASS;
	}
	j->count->syns[j->family] += !p->probe;
	if (verdict == VERDICT_ALERT)
		block_scanner(p, j, &found);
	if (blocked_ns && !p->probe)
		count_late_drop(p, j, blocked_ns);
	drop = verdict == VERDICT_BLOCKED || verdict == VERDICT_LISTED;
	if (p->probe)
		drop = !(j->flags & EVENT_ALLOWED);
	if (drop && j->set->observe) {
		j->count->would_drop[j->family] += !p->probe;
		j->flags |= EVENT_WOULD_DROP;
	} else if (drop && !p->probe) {
		__u32 reason = verdict == VERDICT_LISTED ? DROP_LIST : DROP_SCAN;

		if (j->challenges > 0 && j->flags & EVENT_CLOSED)
			return XDP_TX;
		j->count->dropped[reason * FAMILIES + j->family]++;
		return XDP_DROP;
	}
	if (p->probe)
		record_probe(p, j);
	else
		record_connection(p, j);
	if (verdict == VERDICT_ALERT)
		raise_alert(p, j, &found);
	return drop && !j->set->observe ? XDP_DROP : XDP_PASS;
}

static __always_inline void count_malformed(struct counters *count, __u8 reason)
{
	if (reason < MALFORMED_REASONS)
		count->malformed[reason]++;
}

/*
 * A bare acknowledgment is looked at in turn only: where a peer uses no time stamps, most of what it
 * sends is like that, and has its connection. User space fills the turns up.
 */
static __always_inline enum walk look(struct xdp_md *ctx, __u64 off, __be16 proto, struct packet *p)
{
#ifndef REPLAY
	int zero = 0;
	struct looks *turns = looks.lookup(&zero);
	__u64 left;
	enum walk walk;

	if (!turns)
		return WALK_OTHER;
	left = turns->left;
	if (!left && !turns->until_ns)
		return WALK_OTHER;
	if (left) {
		turns->left = left - 1; /* two CPUs may take the same one: no count depends on it */
	} else if (NOW_NS() >= turns->until_ns) {
		turns->until_ns = 0;
		return WALK_OTHER;
	}
	walk = read_bare(frame_start(ctx), frame_end(ctx), off, proto, p);
	if (walk == WALK_SYN && !left && !blocks.lookup((union address *)&p->saddr))
		return WALK_OTHER;
	return walk;
#endif
	return WALK_OTHER; /* what connections a host had, a capture does not tell */
}

/*
 * What has to be judged: a packet that is for this host, copied into the scratch. It has a room of
 * its own, so that the stack is free afterwards. Null where nothing is to be done but `action`: most
 * SYNs of a blocked source have no more to say.
 */
static __always_inline struct packet *take(struct xdp_md *ctx, struct judgement *j, int *action)
{
	struct packet packet;
	struct scratch *mine;
	struct block *block;
	enum walk walk;
	__be16 proto = 0;
	int id, zero = 0;
	__u64 off;

	off = walk_tags(frame_start(ctx), frame_end(ctx), &proto);
	walk = walk_network(frame_start(ctx), frame_end(ctx), off, proto, &packet);
	if (walk == WALK_OPTIONS)
		walk = walk_options(ctx, &packet);
	if (walk == WALK_BARE)
		walk = look(ctx, off, proto, &packet);
	if (walk == WALK_OTHER)
		return 0;
	packet.network_off = off;
	j->at = find_attachment(INGRESS(ctx));
	if (!j->at)
		return 0;
	id = j->at->id;
	j->count = counters.lookup(&id);
	j->set = settings.lookup(&zero);
	mine = scratch.lookup(&zero);
	if (!j->count || !j->set || !mine)
		return 0;
	if (walk == WALK_MALFORMED) {
		count_malformed(j->count, packet.reason);
		return 0;
	}
	if (walk == WALK_IGNORED) {
		j->count->ignored[IGNORED_SOURCE_ROUTE]++;
		return 0;
	}
	if (packet.tiny)
		count_malformed(j->count, MALFORMED_FRAGMENT);
	if (is_foreign_mac(ctx, j->at)) {
		j->count->ignored[IGNORED_FOREIGN_MAC] += !packet.probe;
		return 0;
	}
	if ((packet.ipv6 && is_mapped(&packet.daddr)) || !is_local(&packet.daddr, j->set, &mine->local)) {
		j->count->ignored[IGNORED_NOT_LOCAL] += !packet.probe;
		return 0;
	}
	if (is_martian(&packet, j->at->flags & ATTACHMENT_LOOPBACK)) {
		j->count->ignored[IGNORED_MARTIAN] += !packet.probe;
		return 0;
	}
#ifdef REPLAY
	tell_hosts_apart(ctx, &packet, j->set->seed);
#endif
	j->family = packet.ipv6 ? FAMILY_IPV6 : FAMILY_IPV4;
	block = blocks.lookup((union address *)&packet.saddr);
	if (!block || !is_surely_in_force(ctx, block, mine)) {
		j->now = NOW_NS();
		block = find_block(&packet, j, block);
	}
	if (block && !packet.probe) {
		lock_xadd(&block->dropped, 1);
		if (block->challenges <= 0 && !j->set->observe) {
			j->count->syns[j->family]++;
			j->count->dropped[DROP_SCAN * FAMILIES + j->family]++;
			*action = XDP_DROP;
			return 0;
		}
	}
	if (!j->now)
		j->now = NOW_NS();
	j->blocked = block != 0;
	j->challenges = block ? block->challenges : 0;
	mine->packet = packet;
	return &mine->packet;
}

int packetwatch(struct xdp_md *ctx)
{
	struct judgement j = {};
	int action = XDP_PASS;
	struct packet *p = take(ctx, &j, &action);

	if (!p)
		return action;
	j.flags = p->ipv6 ? EVENT_IPV6 : 0;
	action = act(ctx, p, &j);
#ifndef REPLAY
	if (action == XDP_TX) {
		int answered = challenge(ctx, p, &j);
		__u32 reason = answered ? DROP_CHALLENGE : DROP_SCAN;

		if (p->bare)
			return answered ? XDP_TX : XDP_PASS;
		j.count->dropped[reason * FAMILIES + j.family]++;
		return answered ? XDP_TX : XDP_DROP;
	}
#endif
	return action;
}

#ifndef REPLAY
/* Of a socket of either family: one of IPv6 has IPv4 clients, whose addresses are mapped there already. */
static __always_inline void read_remote(struct bpf_sock_ops *ops, union address *a)
{
	a->words[0] = 0;
	a->words[1] = 0;
	a->words[2] = bpf_htonl(0xffff);
	a->words[3] = ops->remote_ip4;
	if (ops->family != AF_INET6)
		return;
	for (int i = 0; i < 4; i++)
		a->words[i] = *(volatile __u32 *)&ops->remote_ip6[i]; /* fields of 32 bits, not to be read in pairs */
}

static __always_inline void remember_client(const union address *source, __u64 now)
{
	struct client fresh = { .first_ns = now, .last_ns = now };
	struct client *known = clients.lookup(source);

	if (known)
		known->last_ns = now;
	else
		clients.update(source, &fresh);
}

/*
 * TCP Fast Open tells of a connection when the SYN comes, and may be set to want no cookie with it; that sysctl is not
 * ours to trust.
 */
static __always_inline int is_handshake(struct bpf_sock_ops *ops)
{
	return ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && !(ops->skb_tcp_flags & TCP_SYN);
}

/* Whoever makes a network namespace has every address in it. */
static __always_inline int is_ours(struct bpf_sock_ops *ops)
{
	int zero = 0;
	__u64 *ours = network.lookup(&zero);

	return ours && (!*ours || *ours == bpf_get_netns_cookie(ops));
}

static __always_inline void remember_remote(struct bpf_sock_ops *ops)
{
	union address source;

	read_remote(ops, &source);
	remember_client(&source, NOW_NS());
}

/* On the root cgroup: who has completed a handshake with a listener of this host has its address. */
int established(struct bpf_sock_ops *ops)
{
	if (is_handshake(ops) && is_ours(ops))
		remember_remote(ops);
	return 1; /* 0 would refuse what the socket asks */
}

/* The same for kernels before 5.15, which do not tell the namespaces apart here. */
int established_anywhere(struct bpf_sock_ops *ops)
{
	if (is_handshake(ops))
		remember_remote(ops);
	return 1;
}
#endif
