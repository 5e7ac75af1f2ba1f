# PCM made this for attempt @KEY@.
n='@NONCE@'
say() { printf '%s%s %s\n' "$n" "$1" "$2"; }
base=${PCM_WORK:-$PWD}
[ -d "$base" ] && [ -w "$base" ] || base=${TMPDIR:-/tmp}
d=$base/@NAME@
if [ -e "$d" ]; then
	say f "the back end began it once more, where it had begun before: it is not run twice"
	exit 125
fi
mkdir -p "$d/work" && exec 2>"$d/own" && mkfifo "$d/err" || { say f "no folder can be made in $base, or mkfifo is missing"; exit 125; }
fault() {
	say f "$1: $(tail -c 200 "$d/own" | tr '\n\r' '  ')"
	cd / && rm -rf "$d"
	exit 125
}
pid='' told=''
trap 'told=1$told; [ -z "$pid" ] || kill -TERM "$pid"' TERM

# Data by URL, with what there is.
get() {
	if command -v curl >/dev/null; then
		curl -fsS --retry 4 -o "$2" "$1"
	elif command -v wget >/dev/null; then
		wget -q -O "$2" "$1"
	else
		python3 -c 'import sys, urllib.request as r; r.urlretrieve(sys.argv[1], sys.argv[2])' "$1" "$2"
	fi
}
put() {
	if command -v curl >/dev/null; then
		curl -fsS --retry 4 -H 'Expect:' -T "$2" "$1"
	else
		python3 -c 'import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], data=open(sys.argv[2], "rb").read(), method="PUT", headers={"Content-Type": ""}))' "$1" "$2"
	fi
}
input() { # number, kind, target, URL
	case $2 in
	tar)
		from=${PCM_IN:+$PCM_IN/$1/input.tar}
		if [ -z "$from" ]; then
			from=$d/input.tar
			get "$4" "$from" || fault "input $3 can't be fetched"
		fi
		tar -xof "$from" -C "$d/work" || fault "input $3 can't be unpacked"
		rm -f "$d/input.tar"
		;;
	folder)
		mkdir -p "$d/work/$3" && cp -R "$PCM_IN/$1/." "$d/work/$3/" || fault "input $3 is not there"
		;;
	file)
		case $3 in */*) mkdir -p "$d/work/${3%/*}" ;; esac
		if [ -n "$PCM_IN" ]; then
			cp "$PCM_IN/$1/${3##*/}" "$d/work/$3" || fault "input $3 is not there"
		else
			get "$4" "$d/work/$3" || fault "input $3 can't be fetched"
		fi
		chmod +x "$d/work/$3"
		;;
	esac
}
@INPUTS@

cd "$d/work" || fault "its working folder is gone"
where=$(pwd -P)
# Standard error goes the same way as standard output, its lines marked.
(
	trap '' TERM
	while IFS= read -r line; do
		printf '%se %s\n' "$n" "$line"
	done
	[ -z "$line" ] || printf '%sE %s\n' "$n" "$line"
) <"$d/err" &
marker=$!
set -- @COMMAND@
say s begins
(
	export HOME="$where"
	unset PCM_WORK PCM_IN PCM_OUT
@EXPORTS@
	exec "$@"
) </dev/null 2>"$d/err" &
pid=$!
[ -z "$told" ] || kill -TERM "$pid"
(
	trap 'exit 0' TERM
	peak=0
	while kill -0 "$pid"; do
		while read -r name value _; do
			if [ "$name" = VmHWM: ] && [ "$value" -gt "$peak" ]; then
				peak=$value
				echo "$peak" >"$d/peak"
			fi
		done <"/proc/$pid/status"
		sleep 0.2 || sleep 1
	done
) </dev/null >/dev/null 2>&1 &
watcher=$!
heard=$told
wait "$pid"
code=$?
while [ "$code" -gt 128 ] && [ "$told" != "$heard" ]; do
	heard=$told
	! kill -0 "$pid" 2>/dev/null || code=127 # nothing was collected: 127 is the command's own
	wait "$pid"
	again=$?
	[ "$again" -eq 127 ] || code=$again
done
trap '' TERM
kill "$watcher"
(
	sleep 3
	kill -KILL "$marker"
) </dev/null >/dev/null 2>&1 &
late=$!
wait "$marker"
kill "$late"
# In braces, as files that can't be made would end the shell.
{ times; } >"$d/times"
used=
{
	read -r used
	read -r used
} <"$d/times"
[ -z "$used" ] || say u "$used"
[ ! -s "$d/peak" ] || say m "$(cat "$d/peak")"

outputs() {
	for o in "$@"; do
		shift
		case $o in */*) up=./${o%/*} ;; *) up=. ;; esac
		up=$(cd -P "$up" 2>/dev/null && pwd -P)/
		case $up in
		"$where"/*) [ -e "./$o" ] || [ -L "./$o" ] && set -- "$@" "./$o" ;;
		esac
	done
	[ $# -gt 0 ] || return 0
	if [ false = true ]; then
		for o in "$@"; do
			case $o in ./*/*) mkdir -p "$PCM_OUT/${o%/*}" ;; esac
			cp -R -P "$o" "$PCM_OUT/${o%/*}/" || fault "its outputs can't be taken away"
		done
		return 0
	fi
	tar -cf "$d/outputs.tar" "$@" || fault "its outputs can't be packed"
	size=$(wc -c <"$d/outputs.tar")
	[ "$size" -le @MOST@ ] || { say o "$size"; return 0; }
	if [ -n "$PCM_OUT" ]; then
		mkdir -p "$PCM_OUT" && cp "$d/outputs.tar" "$PCM_OUT/outputs.tar" || fault "its outputs can't be taken away"
	else
		put @PUT@ "$d/outputs.tar" || fault "its outputs can't be sent"
	fi
}
outputs @OUTPUTS@
cd / && rm -rf "$d"
say x "$code"
exit "$code"
