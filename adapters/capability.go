package adapters

// Capabilities are the names of all that adapters are tested for, in the order of the
// tests. An adapter that lacks one says so by this name, with the reason.
var Capabilities = []string{
	"pools", "exit codes and streams", "idempotent start", "refusals", "missing program",
	"environment", "inputs", "read-only inputs", "outputs", "hostile outputs", "logs", "watch",
	"stop by force", "graceful stop", "time limit", "lease", "memory limit", "out of memory",
	"too little memory", "output cap", "use of CPU", "use of memory", "accelerators", "no network",
	"network", "images", "remove", "many at once", "arrays", "waiting", "daemon lost",
	"supervisor hung", "supervisor lost", "back end hung", "back end restarted", "suspend and resume",
	"exec", "copy", "service",
}
