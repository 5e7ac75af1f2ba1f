package slurm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// taskPath is where tasks find programs unless they say otherwise.
const taskPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// devices are the variables by which Slurm tells a job which accelerators are its own.
var devices = []string{"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "ASCEND_RT_VISIBLE_DEVICES"}

// quote makes a word of sh that means s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// batchScript is what Slurm is given. The attempts' own scripts stand in the
// shared folder; an array's tasks find theirs by their index. The shell that
// Slurm has begun reads them: another one costs each task as much as starting `true`.
func batchScript(s spool, b batch, keys []string, gen int) string {
	if b.Count <= 1 {
		return fmt.Sprintf("#!/bin/sh\n. %s\n", quote(s.script(keys[0], gen)))
	}
	return fmt.Sprintf("#!/bin/sh\n. %s/\"$SLURM_ARRAY_TASK_ID\"/run.%d\n", quote(s.array(b.Name)), gen)
}

// environment is the words that run what follows them in the task's environment,
// and in no other.
func environment(t adapters.Task, work string, keep []string) string {
	words := []string{"exec env -i"}
	for _, kv := range supervisor.Environ(t, work, taskPath) {
		words = append(words, quote(kv))
	}
	if t.Resources.GPU > 0 {
		keep = slices.Concat(keep, devices)
	}
	for _, name := range keep {
		if _, ok := t.Env[name]; !ok {
			words = append(words, fmt.Sprintf(`${%[1]s+"%[1]s=$%[1]s"}`, name))
		}
	}
	return strings.Join(words, " ")
}

// wrapper is the script of one attempt. It leaves evidence in the spool:
//
//	KEY.GEN.start    made by whoever runs the attempt, who must be the first to make it
//	KEY.GEN.refused  made by a copy that came later, as after a requeue
//	KEY.GEN.exit     how it ended, and what it used
//
// The file kill, or stop, in the attempt's folder ends it where Slurm doesn't
// answer; so does the loss of the folder, which the node deletes when it has
// given the attempt up.
//
// With the words "beside FILE COMMAND..." it runs a command as the task would, and
// its code goes to the file: see Exec.
func wrapper(s spool, t adapters.Task, gen int, work string, keep []string) string {
	key := t.Key.String()
	words := []string{"inside"}
	for _, w := range append(slices.Clone(t.Command), t.Args...) {
		words = append(words, quote(w))
	}
	path := taskPath
	if p, ok := t.Env["PATH"]; ok {
		path = p
	}
	limit := ""
	if t.Resources.Memory > 0 {
		limit = strconv.FormatInt(int64(t.Resources.Memory)>>10, 10)
	}
	return strings.NewReplacer(
		"@KEY@", key, "@EVIDENCE@", quote(s.evidence(key, gen, "")), "@DIR@", quote(s.attempt(key)), "@WORK@", quote(work),
		"@PATH@", quote(taskPath), "@TASKPATH@", quote(path), "@PROGRAM@", quote(t.Command[0]), "@LIMIT@", limit,
		"@ENV@", environment(t, work, keep), "@RUN@", strings.Join(words, " "),
	).Replace(wrapperText)
}

const wrapperText = `#!/bin/sh
# Attempt @KEY@ of a PCM task: written by its node, run by Slurm.
umask 077
unset CDPATH ENV
evidence=@EVIDENCE@ dir=@DIR@ work=@WORK@
PATH=@PATH@
export PATH
inside() { @ENV@ "$@"; }
if [ "$1" = beside ]; then
	said=$2
	shift 2
	cd "$work" || exit 126
	(inside "$@")
	echo $? >"$said"
	exit
fi
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_JOB_ID:+_$SLURM_ARRAY_TASK_ID}
note() { printf 'job=%s\nhost=%s\nrestarts=%s\n' "$job" "${SLURMD_NODENAME:-$(uname -n)}" "${SLURM_RESTART_COUNT:-0}"; }

# An attempt runs once: the start file is made by one, whoever comes first.
set -C
if ! { note >"${evidence}start"; } 2>/dev/null; then
	{ note >"${evidence}refused"; } 2>/dev/null
	exit 75
fi
set +C
watcher=''
leave() { # CODE LINES
	{ printf 'code=%s\n%s\n' "$1" "$2"; times; echo end; } >"${evidence}exit"
	[ -z "$watcher" ] || wait "$watcher" # Slurm looks for what is left of a job, which takes it time
	exit "$1"
}
[ -n "$work" ] && cd "$work" || leave 75 "fault=its working folder can't be entered on ${SLURMD_NODENAME:-its node}"

# The memory group that Slurm made for this job, if it did.
group=
while IFS=: read -r _ controllers path; do
	case $path in */job_"$SLURM_JOB_ID"/*) path=${path%%/job_"$SLURM_JOB_ID"/*}/job_$SLURM_JOB_ID ;; *) continue ;; esac
	case $controllers in
	'') [ -e "/sys/fs/cgroup$path/memory.peak" ] && group=/sys/fs/cgroup$path peakfile=memory.peak oomfile=memory.events ;;
	*memory*) group=/sys/fs/cgroup/memory$path peakfile=memory.max_usage_in_bytes oomfile=memory.oom_control ;;
	esac
done </proc/self/cgroup

pid='' told=''
trap 'told=1$told; [ -z "$pid" ] || kill -TERM "$pid"' TERM
(
	[ -n "$group" ] || [ -z "@LIMIT@" ] || ulimit -d @LIMIT@
	@RUN@
) >"$dir/stdout" 2>"$dir/stderr" </dev/null &
pid=$!
[ -z "$told" ] || kill -TERM "$pid"

# What the task leaves behind when it is ended: Slurm may not know it for the job's.
sweep() {
	for other in $(grep -lsxzF "PCM_ATTEMPT=@KEY@" /proc/[0-9]*/environ); do
		other=${other#/proc/}
		other=${other%/environ}
		[ "$other" = "$pid" ] || kill -KILL "$other"
	done 2>/dev/null
}

# Beside it: its peak of memory, a sign of life, and a way to end it while Slurm
# doesn't answer.
watch() {
	trap 'kill "$nap"; exit 0' TERM
	most=0 nap='' told='' pause=0.1
	while kill -0 "$pid"; do # a TERM that came before the trap is lost
		sleep "$pause" & # first: most tasks that are short are over by then
		nap=$!
		wait "$nap"
		case $pause in 0.1) pause=0.2 ;; 0.2) pause=0.5 ;; 0.5) pause=1 ;; 1) pause=2 ;; esac
		kill -0 "$pid" || break
		while read -r name value _; do
			case $name in VmHWM:)
				[ "$value" -le "$most" ] || { most=$value; echo "$most" >"$dir/peak"; }
				break
				;;
			esac
		done <"/proc/$pid/status"
		if [ -e "$dir/kill" ] || [ ! -d "$dir" ]; then
			# What the task has started goes first.
			kill -STOP "$pid"
			sweep
			kill -KILL "$pid"
		fi
		: >"$dir/alive"
		[ ! -e "$dir/stop" ] || [ -n "$told" ] || { told=1; kill -TERM "$pid"; }
	done
}
watch >/dev/null 2>&1 </dev/null &
watcher=$!

` + supervisor.Await + `kill -TERM "$watcher" 2>/dev/null
trap '' TERM
[ -z "$told" ] && [ ! -e "$dir/stop" ] && [ ! -e "$dir/kill" ] || sweep

peak=0 oom=0 missing=0
if [ -n "$group" ]; then
	read -r peak <"$group/$peakfile"
	peak=$((peak / 1024))
	while read -r name value; do
		case $name in oom_kill) oom=$value ;; esac
	done <"$group/$oomfile"
elif [ -s "$dir/peak" ]; then
	read -r peak <"$dir/peak"
else # it was over before it could be looked at: no less than this shell
	while read -r name value _; do
		case $name in VmHWM:) peak=$value && break ;; esac
	done <"/proc/$$/status"
fi 2>/dev/null
if [ "$code" = 127 ]; then
	(PATH=@TASKPATH@; command -v -- @PROGRAM@) >/dev/null 2>&1 || missing=1
fi
leave "$code" "peak=$peak
oom=$oom
missing=$missing
group=$group"
`
