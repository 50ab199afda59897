#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Whether the installed package protects this host, up to a scanner that is shut out: smoke.sh, as root. One line a
# check; ends with 0, or with 1 at the first that fails. For the defaults: mode enforce, interface default-route.
#
# The scanner is a network namespace behind a veth pair. Its route is in a table that no rule uses: the interface is
# watched as one with a default route, and no packet of the host's takes it. All this ends with the script.
set -eu

unit=packetwatch.service
device=pw-smoke table=4711 port=9
near=198.51.100.1 scanner=198.51.100.2 bystander=198.51.100.3
limit_s=${SMOKE_LIMIT_S:-30}
most_exposed=2.0

ok() { echo "ok    $*"; }
fail() {
	echo "FAIL  $*" >&2
	packetwatch status >&2 || true
	exit 1
}

# ask EXPRESSION COMMAND...: what Python makes of the answer, called it.
ask() {
	expression=$1
	shift
	answer=$(packetwatch "$@" -o json 2>/dev/null) || return 1
	echo "$answer" | python3 -c "import json, sys; it = json.load(sys.stdin); print($expression)"
}
is() { [ "$(ask "$@")" = True ]; }

# check WHAT COMMAND...: true within the time limit, or the end.
check() {
	what=$1 end=$(($(date +%s) + limit_s))
	shift
	until "$@"; do
		[ "$(date +%s)" -lt "$end" ] || fail "$what: not within $limit_s s"
		sleep 0.2
	done
	ok "$what"
}

# the scanner

outside() { nsenter --target "$holder" --net "$@"; }
is_outside() { [ "$(readlink "/proc/$holder/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }

connect() {
	setpriv --pdeathsig KILL unshare --net sleep 600 &
	holder=$!
	check "a network beside this host" is_outside
	ip link add "$device" type veth peer name out netns "$holder"
	ip address add "$near/29" dev "$device"
	ip link set "$device" up
	outside ip address add "$scanner/29" dev out
	outside ip address add "$bystander/29" dev out
	outside ip link set out up
	ip route add default dev "$device" table "$table"
}

disconnect() {
	[ -n "$holder" ] || return 0
	ip link del "$device" 2>/dev/null || true
	kill "$holder" 2>/dev/null || true
	wait "$holder" 2>/dev/null || true
	holder=
	packetwatch block remove "$scanner" >/dev/null 2>&1 || true
}

# knock SOURCE: opens one connection to this host; false when nothing comes back, not even a refusal.
knock() {
	outside python3 -c '
import socket, sys
source, to, port = sys.argv[1:]
try:
    socket.create_connection((to, int(port)), 1, (source, 0))
except socket.timeout:
    sys.exit(1)
except OSError:
    pass' "$1" "$near" "$port"
}
is_shut_out() { ! knock "$1"; }

# More ports than any setting allows, all at once.
scan() {
	outside python3 -c '
import socket, sys
source, to = sys.argv[1:]
attempts = [socket.socket() for port in range(1, 65)]
for port, attempt in enumerate(attempts, 1):
    attempt.setblocking(False)
    attempt.bind((source, 0))
    attempt.connect_ex((to, port))' "$scanner" "$near"
}

is_recorded() {
	journalctl --quiet --output=cat --unit="$unit" --since="@$begun" | grep -qE "$scanner.*[^0-9]$port([^0-9]|\$)"
}

# the package

verify() {
	if dpkg-query --show packetwatch >/dev/null 2>&1; then
		altered=$(dpkg --verify packetwatch || true)
	elif rpm --query --quiet packetwatch 2>/dev/null; then
		altered=$(rpm --verify packetwatch || true)
	else
		fail "packetwatch is not installed as a package"
	fi
	altered=$(echo "$altered" | grep -v ' c /etc/' || true) # an edited setting is no damage
	[ -z "$altered" ] || fail "the package's files differ: $altered"
	ok "the package's files are as it brought them"
}

expose() {
	level=$(systemd-analyze security --no-pager "$unit" | sed -n 's/.*Overall exposure level for [^ ]*: \([0-9.]*\).*/\1/p')
	awk "BEGIN { exit !(\"$level\" != \"\" && $level + 0 <= $most_exposed) }" || fail "systemd-analyze security: $level"
	ok "systemd-analyze security: $level, at most $most_exposed"
}

scrape() {
	address=$(ask 'it["metrics"][0] if it["metrics"] else ""' status)
	[ -n "$address" ] || fail "no metrics: python3-prometheus_client is not installed, or metrics.listen is off"
	python3 -c '
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())' "http://$address/metrics" |
		grep '^packetwatch_syns_total' >/dev/null || fail "no metrics at $address"
	ok "metrics at $address"
}

[ "$(id -u)" = 0 ] || { echo "This needs root." >&2; exit 1; }
begun=$(date +%s.%6N)
holder=
trap disconnect EXIT
trap 'exit 1' HUP INT TERM

verify
check "the service is active" systemctl --quiet is-active "$unit"
check "it protects" is 'it["protecting"]' status
scrape
expose
connect
check "the new interface is watched" is "any(row['name'] == '$device' and row['attached'] for row in it['interfaces'])" status
check "a connection is answered" knock "$scanner"
check "and recorded" is_recorded
scan
check "the scanner is blocked" is "'$scanner' in [row['prefix'] for row in it]" block list
check "and shut out" is_shut_out "$scanner"
check "nobody else is" knock "$bystander"
packetwatch block remove "$scanner" >/dev/null
check "unblocked it is answered again" knock "$scanner"
disconnect
check "it protects as before" is "it['protecting'] and '$device' not in [row['name'] for row in it['interfaces']]" status
verify
