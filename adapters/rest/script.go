package rest

import (
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

var (
	identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// Variables that are the shell's own, in one shell or another: setting them fails, or gives them another value.
	shellsOwn = regexp.MustCompile(`^(_|IFS|E?UID|PPID|PWD|OLDPWD|SHLVL|SHELLOPTS|BASH.*|OPT(IND|ARG)|S?RANDOM|SECONDS|EPOCH.*|LINENO|HISTCMD|DIRSTACK|FUNCNAME|FUNCNEST|GROUPS)$`)
)

// shell quotes words for a POSIX shell.
func shell(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

// environ is the task's environment without what only its place knows.
func environ(t adapters.Task) []string {
	var all []string
	for _, v := range supervisor.Environ(t, "", "") {
		name, _, _ := strings.Cut(v, "=")
		if _, given := t.Env[name]; given || name != "PATH" && name != "HOME" {
			all = append(all, v)
		}
	}
	return all
}

// script is the text that brings the inputs, runs the task and takes its outputs
// away, where the back end has no more than a shell; see description.Task. Its own
// words stand behind the nonce: see marks.
//
// Where the log keeps its end only, the task is ended when its output is over its
// cap, as nobody else can tell.
func script(t adapters.Task, name, nonce string, data map[string]any, tail bool) string {
	var in strings.Builder
	inputs, _ := data["inputs"].([]any)
	for i, v := range inputs {
		m, _ := v.(map[string]any)
		target := path.Clean(t.Inputs[i].Target)
		url, _ := m["url"].(string)
		if !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "http://") {
			url = ""
		}
		kind := "tar"
		if data["pack"] == "files" {
			kind = "file"
			if m["folder"] == true {
				kind = "folder"
			}
		}
		in.WriteString("input " + shell(strconv.Itoa(i), kind, target, url) + "\n")
	}
	var exports strings.Builder
	var odd []string
	for _, v := range environ(t) {
		if k, _, _ := strings.Cut(v, "="); identifier.MatchString(k) && !shellsOwn.MatchString(k) {
			exports.WriteString("export " + shell(v) + "\n")
		} else {
			odd = append(odd, v)
		}
	}
	given := ""
	if len(odd) > 0 { // by a program, which the task's own path may not have
		given = `set -- "$(command -v env)" -- ` + shell(odd...) + ` "$@"` + "\n"
	}
	var outs []string
	for _, o := range t.Outputs {
		outs = append(outs, path.Clean(o))
	}
	out, _ := data["outputs"].(map[string]any)
	put, _ := out["url"].(string)
	if !strings.HasPrefix(put, "https://") && !strings.HasPrefix(put, "http://") {
		put = ""
	}
	var headers strings.Builder
	if more, ok := out["headers"].(map[string]any); ok {
		for k, v := range more {
			if s, ok := v.(string); ok {
				headers.WriteString(" -H " + shell(k+": "+s))
			}
		}
	}
	most := 2*int64(t.OutputCap) + 16<<20
	if t.OutputCap <= 0 || most < 0 {
		most = 1 << 40
	}
	var printer, out1, printed, bounded, from string
	from = ` <"$d/err"`
	if tail {
		limit := "unlimited"
		if t.OutputCap > 0 {
			limit = strconv.FormatInt(int64(t.OutputCap)/512+1, 10)
		}
		// dd hands on at once what it gets; tee ends by its limit, and then whoever prints.
		keep := func(stream string) string {
			return "(trap '' TERM; dd bs=4096 | (ulimit -f " + limit + "; exec tee \"$d/" + stream + "\"))"
		}
		printer = "mkfifo \"$d/out\" || fault 'mkfifo fails'\n" + keep("stdout") + " <\"$d/out\" &\nprinter=$!\n"
		out1, printed, bounded, from = ` >"$d/out"`, ` "$printer"`, keep("stderr")+` <"$d/err" | `, ""
	}
	spills := ""
	if tail {
		spills = spillScript(data)
	}
	return strings.NewReplacer(
		"@SPILL@\n", spills, "@PRINTER@\n", printer, "@OUT@", out1, "@PRINTED@", printed, "@BOUNDED@", bounded, "@FROM@", from,
		"@KEY@", t.Key.String(), "@NONCE@", nonce, "@NAME@", name, "@MOST@", strconv.FormatInt(most, 10),
		"@COMMAND@", shell(append(append([]string{}, t.Command...), t.Args...)...), "@EXPORTS@", given+strings.TrimSuffix(exports.String(), "\n"), "@RUN@", `exec "$@"`, "@INPUTS@", strings.TrimSuffix(in.String(), "\n"),
		"@OUTPUTS@", shell(outs...), "@PUT@", shell(put), "@HEADERS@", headers.String(), "@FILES@", strconv.FormatBool(data["pack"] == "files"),
	).Replace(wrapper)
}

// checkScript refuses what can't go into a script.
func checkScript(t adapters.Task) error {
	size := 0
	for _, w := range append(append(append([]string{}, t.Command...), t.Args...), environ(t)...) {
		size += len(w)
	}
	if size > maxWords {
		return pcm.Errorf(pcm.TooLarge, "command and environment have %d bytes: at most %d", size, maxWords)
	}
	return nil
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
trap 'told=1; [ -z "$pid" ] || kill -TERM "$pid"' TERM

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
	@RUN@
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
wait "$pid"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$pid"; do
	wait "$pid"
	code=$?
done
trap '' TERM
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

const maxWords = 128 << 10
