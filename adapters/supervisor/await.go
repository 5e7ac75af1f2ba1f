package supervisor

// Await is the part of a script for sh that waits for the task's command, process $pid, and
// sets $code to its exit code. SIGTERM's trap makes $told longer each time: a wait that it
// ended may have told of that only, whether the command lives or not, and the next one knows
// then. It says 127 of what was collected before, or, as bash, the code again.
const Await = `heard=$told
wait "$pid"
code=$?
while [ "$code" -gt 128 ] && [ "$told" != "$heard" ]; do
	heard=$told
	! kill -0 "$pid" 2>/dev/null || code=127 # nothing was collected: 127 is the command's own
	wait "$pid"
	again=$?
	[ "$again" -eq 127 ] || code=$again
done
`
