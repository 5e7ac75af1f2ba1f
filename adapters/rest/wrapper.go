package rest

import (
	"regexp"
	"strings"

	"github.com/jointcloud/pcm/adapters/supervisor"
)

// ScriptWords are the @WORDS@ of a script that are another thing for each task. The
// engine fills them in, and so does each language's support of generated adapters.
var ScriptWords = []string{"KEY", "NONCE", "NAME", "MOST", "LIMIT", "COMMAND", "EXPORTS", "INPUTS", "OUTPUTS", "PUT"}

// ShellsOwn matches variables that are the shell's own, in one shell or another: setting
// them fails, or gives them another value. Programs set them, not scripts.
const ShellsOwn = `^(_|IFS|E?UID|PPID|PWD|OLDPWD|SHLVL|SHELLOPTS|BASH.*|OPT(IND|ARG)|S?RANDOM|SECONDS|EPOCH.*|LINENO|HISTCMD|DIRSTACK|FUNCNAME|FUNCNEST|GROUPS)$`

// ScriptText is the text of description.Task.Script with its ScriptWords as they are: for
// adapters that are generated from descriptions, which fill them in. Tail tells
// whether a log keeps its end only.
func ScriptText(tail bool) string {
	// Generated adapters know no other data than tar archives by URLs that need no headers.
	words := map[string]string{"HEADERS": "", "FILES": "false", "SPILL": ""}
	for _, w := range ScriptWords {
		words[w] = "@" + w + "@"
	}
	return fill(layout(tail), words)
}

// layout is the text for logs of a kind.
func layout(tail bool) string {
	words := map[string]string{"PRINTER": "", "OUT": "", "PRINTED": "", "BOUNDED": "", "FROM": ` <"$d/err"`}
	if tail {
		// dd hands on at once what it gets; tee ends by its limit, and then whoever prints.
		keep := func(stream string) string {
			return "(trap '' TERM; dd bs=4096 | (ulimit -f @LIMIT@; exec tee \"$d/" + stream + "\"))"
		}
		words = map[string]string{
			"PRINTER": "mkfifo \"$d/out\" || fault 'mkfifo fails'\n" + keep("stdout") + " <\"$d/out\" &\nprinter=$!",
			"OUT":     ` >"$d/out"`, "PRINTED": ` "$printer"`, "BOUNDED": keep("stderr") + ` <"$d/err" | `, "FROM": "",
		}
	}
	return fill(wrapper, words)
}

// scriptWord is one of the text, and the end of the line where that holds nothing else.
var scriptWord = regexp.MustCompile(`(?m)^@[A-Z]+@\n|@[A-Z]+@`)

// fill puts values in the place of words, all at once: a word in a value is left alone,
// and so are words without a value.
func fill(text string, words map[string]string) string {
	return scriptWord.ReplaceAllStringFunc(text, func(found string) string {
		name, end, _ := strings.Cut(found[1:], "@")
		value, ok := words[name]
		switch {
		case !ok:
			return found
		case value == "":
			return "" // with its line
		}
		return value + end
	})
}

// The texts that this text prints for its reader all begin with $n: a letter and
// a blank follow, and a text to the end of the line.
const wrapper = `# PCM made this for attempt @KEY@.
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
		curl -fsS --retry 4 -H 'Expect:'@HEADERS@ -T "$2" "$1"
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
@BOUNDED@(
	trap '' TERM
	while IFS= read -r line; do
		printf '%se %s\n' "$n" "$line"
	done
	[ -z "$line" ] || printf '%sE %s\n' "$n" "$line"
)@FROM@ &
marker=$!
@PRINTER@
set -- @COMMAND@
say s begins
(
	export HOME="$where"
	unset PCM_WORK PCM_IN PCM_OUT
@EXPORTS@
	exec "$@"
) </dev/null 2>"$d/err"@OUT@ &
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
` + supervisor.Await + `trap '' TERM
kill "$watcher"
(
	sleep 3
	kill -KILL "$marker"@PRINTED@
) </dev/null >/dev/null 2>&1 &
late=$!
wait "$marker"@PRINTED@
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

@SPILL@
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
	if [ @FILES@ = true ]; then
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
`
