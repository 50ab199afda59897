/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map and every map operation: local? -> block -> allow -> open? -> track -> judge -> emit.
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
BPF_ARRAY(suspects, struct suspect_set, SUSPECT_SETS);
BPF_TABLE("lru_hash", union address, struct offender, offenders, OFFENDERS);
BPF_TABLE("lru_hash", union address, struct client, clients, CLIENTS);
BPF_ARRAY(network, __u64, 1); /* cookie of the namespace whose clients they are; 0: all */
BPF_ARRAY(storm, struct storm, 1);
BPF_ARRAY(known_ports, struct known_ports, 1);
BPF_TABLE("hash", struct fold_key, struct fold, folds_by_source, FOLDS);
BPF_TABLE("hash", struct fold_key, struct fold, folds_by_port, FOLDS);
BPF_PERCPU_ARRAY(folds_by_interface, struct fold, ATTACHMENTS * 2);
BPF_PERCPU_ARRAY(options, struct option_bytes, 1);
BPF_RINGBUF_OUTPUT(connections, CONNECTIONS_PAGES);
BPF_RINGBUF_OUTPUT(probes, PROBES_PAGES);
BPF_RINGBUF_OUTPUT(alerts, ALERTS_PAGES);

#ifndef NOW_NS
#define NOW_NS() bpf_ktime_get_boot_ns() /* tests set a clock of their own */
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

enum verdict { VERDICT_PASS, VERDICT_ALERT, VERDICT_BLOCKED, VERDICT_LISTED, VERDICT_MARTIAN, VERDICT_FLOW };

struct judgement {
	struct settings *set;
	struct attachment *at;
	struct counters *count;
	__u64 now;
	__u32 family; /* enum family */
	__u8 flags; /* enum event_flag */
	__u64 frozen; /* 1: no blocks are made */
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

/* The end of a block by a rule: twice as long each time, until the source has been quiet. 0: forever. */
static __always_inline __u64 end_of_block(const struct packet *p, const struct judgement *j)
{
	__u64 most = j->set->block_ns, length = j->set->first_ns, times = 0;
	union address key = p->saddr;
	struct offender now = { .count = 1 }, *before = offenders.lookup(&key);

	if (before &&
	    (!before->until_ns || j->now - before->until_ns < j->set->forget_ns || j->now < before->until_ns)) {
		times = before->count < DOUBLINGS ? before->count : DOUBLINGS;
		now.count = times + 1;
	}
	if (!length || (!most && times >= DOUBLINGS_FOREVER))
		now.until_ns = 0;
	else
		now.until_ns = j->now + doubled(length, times, most ? most : ~0ULL >> 1);
	offenders.update(&key, &now);
	return now.until_ns;
}

/*
 * A block that is in force and lasts longer stays as it is, and its end is told; a full table
 * refuses. Returns an enum alert_block.
 */
static __always_inline __u8 block_source(const struct packet *p, const struct judgement *j, __u64 *until_ns)
{
	struct block fresh = { .until_ns = *until_ns, .since_ns = j->now, .attachment = j->at->id };
	union address key = p->saddr;
	struct block *old;

	if (!blocks.insert(&key, &fresh))
		goto blocked;
	old = blocks.lookup(&key);
	if (!old) {
		j->count->refused++;
		return ALERT_REFUSED;
	}
	if (!in_force(old->until_ns, j->now))
		blocks.update(&key, &fresh);
	else if (old->until_ns && (!*until_ns || old->until_ns < *until_ns))
		old->until_ns = *until_ns;
	else
		*until_ns = old->until_ns;
blocked:
	j->count->blocked++;
	return ALERT_BLOCKED;
}

/* Whether the source is blocked, each SYN counted where the block stands. */
static __always_inline int is_blocked(const struct packet *p, const struct judgement *j)
{
	struct block *block = blocks.lookup((union address *)&p->saddr);

	if (!block || !in_force(block->until_ns, j->now))
		return 0;
	if (!p->probe)
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
	if (j->set->open_ns)
		fresh.until_ns = blocked_ns + j->set->open_ns; /* the other CPU prolongs it */
	if (blocks.insert(&key, &fresh))
		is_blocked(p, j);
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

/*
 * All of it, since the kernel takes no record with bytes that nobody wrote; and without a branch,
 * of which each would make a way of its own through all that follows.
 */
static __always_inline void begin_alert(struct alert_event *alert, const __u64 *slots, __u32 size, __u32 count)
{
	__builtin_memset(alert, 0, sizeof(*alert));
	alert->port_count = count;
	for (__u32 i = 0; i < size; i++) {
		__u64 slot = slots[i] & -below(i, count);

		alert->ports[i] = slot;
		alert->closed |= (slot / SLOT_CLOSED & 1) << i;
	}
}

/*
 * The order between CPUs is that of the lock: a SYN that takes it after the one that earned a
 * block is blocked even if the block has not reached `blocks` yet. Once that can no longer be the
 * reason, the block has ended or was removed.
 */
static __always_inline enum verdict track(const struct packet *p, const struct judgement *j, __u64 hash,
					  struct alert_event *alert, __u64 *blocked_ns)
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
	way = choose_way(set->ways, sizeof(set->ways[0]), TRACKER_WAYS, p);
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
	tick = now & SLOT_TIME;
	if (is_repeated(way->slots, way->count, tick | slot, j->set->keep_ns))
		goto unlock;
	way->count = move_to_front(way->slots, SCAN_SLOTS, way->count, tick | slot, j->set->keep_ns);
	/* Read again: what the shifting taught the verifier of it would make one way of each of 64. */
	count = *(volatile __u32 *)&way->count;
	scan = has_reached(way->slots, SCAN_SLOTS, count, j->set->ports, tick, j->set->window_ns, way->scan_ns, 1);
	rule = find_rule(j->set, 0, way->slots, SCAN_SLOTS, count, tick, &ports);
	if (scan | rule) {
		verdict = VERDICT_ALERT;
		ports = (ports & (scan - 1)) | (j->set->ports & -scan);
		begin_alert(alert, way->slots, SCAN_SLOTS, ports);
		alert->flags = scan * EVENT_SCAN;
		alert->rule = rule;
		way->blocked_ns = now & (j->frozen - 1);
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
					    enum verdict verdict, struct alert_event *alert)
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
	if (is_anothers(&way->of, p)) {
		evicted = way->of.last_ns && now - way->of.last_ns < j->set->suspect_ns;
		way->of.saddr = p->saddr;
		way->of.last_ns = 0;
		way->count = 0;
	}
	if (now < way->of.last_ns)
		now = way->of.last_ns;
	way->of.last_ns = now;
	tick = now & SLOT_TIME;
	slot = tick | SLOT_CLOSED | bpf_ntohs(p->dport);
	if (is_repeated(way->slots, way->count, slot, j->set->suspect_ns))
		goto unlock;
	way->count = move_to_front(way->slots, SUSPECT_SLOTS, way->count, slot, j->set->suspect_ns);
	count = *(volatile __u32 *)&way->count;
	rule = find_rule(j->set, 1, way->slots, SUSPECT_SLOTS, count, tick, &ports);
	if (rule) {
		way->count = 0;
		if (verdict != VERDICT_ALERT || !(alert->flags & EVENT_SCAN))
			begin_alert(alert, way->slots, SUSPECT_SLOTS, ports);
		alert->rule = rule;
		verdict = VERDICT_ALERT;
	}
unlock:
	bpf_spin_unlock(&set->lock);
	j->count->suspects_evicted += evicted;
	return verdict;
}

/* The first thing after a scan: until the block stands, other CPUs have only the tracker to go by. */
static __always_inline void block_scanner(const struct packet *p, const struct judgement *j, struct alert_event *alert)
{
	if (alert->flags & EVENT_SCAN)
		j->count->scans[j->family]++;
	alert->until_ns = 0;
	if (j->frozen) {
		alert->block = ALERT_FROZEN;
		j->count->frozen++;
		return;
	}
	count_block(j);
	if (alert->rule)
		alert->until_ns = end_of_block(p, j);
	else if (j->set->open_ns)
		alert->until_ns = j->now + j->set->open_ns;
	alert->block = block_source(p, j, &alert->until_ns);
}

static __always_inline void raise_alert(const struct packet *p, const struct judgement *j, struct alert_event *alert)
{
	alert->boot_ns = j->now;
	__builtin_memcpy(alert->saddr, SOURCE_OF(p), sizeof(alert->saddr));
	__builtin_memcpy(alert->daddr, &p->daddr, sizeof(alert->daddr));
	alert->attachment = j->at->id;
	alert->flags |= (j->flags & EVENT_IPV6) | (j->set->observe ? EVENT_WOULD_DROP : 0);
	if (alerts.ringbuf_output(alert, sizeof(*alert), 0))
		j->count->alerts_lost++;
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

	if (known && is_marked(known->open, bpf_ntohs(p->dport)))
		return EVENT_OPEN;
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
					  struct alert_event *alert, __u64 *blocked_ns)
{
	enum verdict verdict = VERDICT_PASS;
	struct known_ports *known;
	struct source *source;
	int zero = 0;
	__u64 hash;

	if (!p->probe && is_blocked(p, j))
		return VERDICT_BLOCKED;
	known = known_ports.lookup(&zero);
	if (p->probe) {
		j->flags |= port_state(ctx, p, known);
		if (HAS_FLOWS && !(j->flags & (EVENT_OPEN | EVENT_CLOSED)))
			return VERDICT_FLOW;
		if (is_blocked(p, j))
			return VERDICT_BLOCKED;
	}
	hash = hash_of(&p->saddr, j->set->seed);
	source = find_source(p, hash, j->set);
	if (source) {
		if (source->flags & SOURCE_OWN && !(j->at->flags & ATTACHMENT_LOOPBACK))
			return VERDICT_MARTIAN;
		if (source->flags & SOURCE_BLOCK && in_force(source->until_ns, j->now) &&
		    !(source->flags & SOURCE_ALLOW)) {
			if (!p->probe)
				lock_xadd(&source->dropped, 1);
			return VERDICT_LISTED;
		}
	}
	if (!p->probe)
		j->flags |= port_state(ctx, p, known);
	if (source && source->flags & SOURCE_ALLOW) {
		j->flags |= EVENT_ALLOWED;
		return VERDICT_PASS;
	}
	j->frozen = is_storm(j);
	if (j->flags & EVENT_CLOSED || !j->set->count_closed)
		verdict = track(p, j, hash, alert, blocked_ns);
	if (verdict == VERDICT_BLOCKED)
		return verdict;
	if (j->flags & EVENT_CLOSED && j->set->suspect_ns)
		verdict = suspect(p, j, hash, verdict, alert);
	if (known && is_marked(known->honeypot, bpf_ntohs(p->dport))) {
		if (verdict != VERDICT_ALERT) {
			__u64 slot = bpf_ntohs(p->dport) | (j->flags & EVENT_CLOSED ? SLOT_CLOSED : 0);

			begin_alert(alert, &slot, 1, 1);
		}
		alert->rule = RULE_HONEYPOT;
		verdict = VERDICT_ALERT;
	}
	return verdict;
}

static __always_inline int act(struct xdp_md *ctx, const struct packet *p, struct judgement *j)
{
	struct alert_event alert;
	__u64 blocked_ns = 0;
	enum verdict verdict;
	int drop;

	verdict = judge(ctx, p, j, &alert, &blocked_ns);
	if (verdict == VERDICT_FLOW)
		return XDP_PASS;
	if (verdict == VERDICT_MARTIAN) {
		j->count->ignored[IGNORED_MARTIAN] += !p->probe;
		return XDP_PASS;
	}
	j->count->syns[j->family] += !p->probe;
	if (verdict == VERDICT_ALERT)
		block_scanner(p, j, &alert);
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

		j->count->dropped[reason * FAMILIES + j->family]++;
		return XDP_DROP;
	}
	if (p->probe)
		record_probe(p, j);
	else
		record_connection(p, j);
	if (verdict == VERDICT_ALERT)
		raise_alert(p, j, &alert);
	return drop && !j->set->observe ? XDP_DROP : XDP_PASS;
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
	if (packet.tiny)
		count_malformed(j.count, MALFORMED_FRAGMENT);
	if (is_foreign_mac(ctx, j.at)) {
		j.count->ignored[IGNORED_FOREIGN_MAC] += !packet.probe;
		return XDP_PASS;
	}
	if ((packet.ipv6 && is_mapped(&packet.daddr)) || !is_local(&packet.daddr, j.set)) {
		j.count->ignored[IGNORED_NOT_LOCAL] += !packet.probe;
		return XDP_PASS;
	}
	if (is_martian(&packet, j.at->flags & ATTACHMENT_LOOPBACK)) {
		j.count->ignored[IGNORED_MARTIAN] += !packet.probe;
		return XDP_PASS;
	}
#ifdef REPLAY
	tell_hosts_apart(ctx, &packet, j.set->seed);
#endif
	j.family = packet.ipv6 ? FAMILY_IPV6 : FAMILY_IPV4;
	j.flags = packet.ipv6 ? EVENT_IPV6 : 0;
	j.frozen = 0;
	j.now = NOW_NS();
	return act(ctx, &packet, &j);
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
