package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The values of RunnerConfig.Sandbox.
const (
	SandboxAuto       = "auto"       // the first of the others that works
	SandboxBubblewrap = "bubblewrap" // refuse to run without it
	SandboxLandlock   = "landlock"   // the kernel's own means, by this program itself; refuse to run without them
	SandboxNone       = "none"
)

// workInside is where a sandboxed task finds its working folder.
const workInside = "/work"

// sandbox keeps tasks from the rest of the machine.
type sandbox interface {
	name() string
	// namespaces tells whether tasks see files, processes and network of their own
	// only. Without, they are merely refused what isn't theirs.
	namespaces() bool
	// prepare makes the command line of one task.
	prepare(t *supervisor.Run, extra surroundings) (*spec, error)
	// explain tells why a sandbox ended without running the program.
	explain(exit *supervisor.Exit, s *spec, program, stderr string)
}

// surroundings are what one task gets beside its folder.
type surroundings struct {
	network   bool
	scratch   pcm.Bytes // of memory for /tmp and each of its like
	processes int       // at most; 0: counted elsewhere
	memory    pcm.Bytes // of each process; 0: bounded elsewhere
	devices   []string
	libs      []string // of the devices' drivers, read-only
	env       map[string]string
}

// findSandbox gives the sandbox that cfg asks for; nil means none. why are the
// reasons for which better ones were passed over.
func findSandbox(cfg RunnerConfig) (box sandbox, why []error, err error) {
	switch cfg.Sandbox {
	case "", SandboxAuto, SandboxBubblewrap, SandboxLandlock:
	case SandboxNone:
		return nil, nil, nil
	default:
		return nil, nil, pcm.Errorf(pcm.Invalid, "sandbox %q is not auto, bubblewrap, landlock or none", cfg.Sandbox)
	}
	if cfg.Sandbox != SandboxLandlock {
		b, err := findBubblewrap(cfg)
		if err == nil {
			return b, why, nil
		}
		if cfg.Sandbox == SandboxBubblewrap {
			return nil, nil, pcm.Errorf(pcm.Unavailable, "sandbox bubblewrap can't be had: %w; install it, allow user namespaces, or set the sandbox to landlock or none", err)
		}
		why = append(why, fmt.Errorf("bubblewrap: %w", err))
	}
	l, err := findLandlock(cfg)
	if err == nil {
		if !l.namespaces() {
			why = append(why, fmt.Errorf("namespaces: %w", l.unspaced))
		}
		return l, why, nil
	}
	if cfg.Sandbox == SandboxLandlock {
		return nil, nil, pcm.Errorf(pcm.Unavailable, "sandbox landlock can't be had: %w; use a kernel of version 5.13 or later with Landlock switched on, or set the sandbox to bubblewrap or none", err)
	}
	return nil, append(why, fmt.Errorf("landlock: %w", err)), nil
}

// part is a file or folder of the host that sandboxed tasks see, read-only.
type part struct {
	From string `json:"from,omitempty"` // "": an empty folder in its place
	To   string `json:"to"`
	Link bool   `json:"link,omitempty"` // To is a link to From
}

// system lists what all sandboxed tasks see of the host: the system's programs
// and libraries, and what these need of /etc. The folders of cfg.Dir and
// cfg.Hide are covered where one of those holds them.
func system(cfg RunnerConfig) ([]part, error) {
	etc, err := synthetic(cfg.Dir)
	if err != nil {
		return nil, err
	}
	all := []part{{From: "/usr", To: "/usr"}}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		info, err := os.Lstat("/" + name)
		if err != nil {
			continue
		}
		if info.IsDir() {
			all = append(all, part{From: "/" + name, To: "/" + name})
		} else if to, err := os.Readlink("/" + name); err == nil {
			all = append(all, part{From: to, To: "/" + name, Link: true})
		}
	}
	for _, name := range []string{"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "localtime", "nsswitch.conf", "mime.types"} {
		if _, err := os.Stat("/etc/" + name); err == nil {
			all = append(all, part{From: "/etc/" + name, To: "/etc/" + name})
		}
	}
	for _, name := range []string{"passwd", "group", "hosts"} {
		all = append(all, part{From: filepath.Join(etc, name), To: "/etc/" + name})
	}
	for _, dir := range cfg.ReadOnly {
		all = append(all, part{From: dir, To: dir})
	}
	for _, dir := range append([]string{cfg.Dir}, cfg.Hide...) {
		for _, shown := range append([]string{"/usr"}, cfg.ReadOnly...) {
			if rel, err := filepath.Rel(shown, dir); err == nil && filepath.IsLocal(rel) {
				all = append(all, part{To: dir})
			}
		}
	}
	return all, nil
}

// synthetic writes the few files of /etc that programs want but that must not
// be the host's.
func synthetic(dir string) (string, error) {
	etc := filepath.Join(dir, "sandbox")
	if err := os.MkdirAll(etc, 0o700); err != nil {
		return "", err
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:" + workInside + ":/bin/sh\n",
		"group":  "root:x:0:\nnogroup:x:65534:\n",
		"hosts":  "127.0.0.1 localhost task\n::1 localhost\n",
	} {
		// Never written in place: what runs may have it open.
		if old, err := os.ReadFile(filepath.Join(etc, name)); err == nil && string(old) == text {
			continue
		}
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return etc, nil
}

// ready tells whether a task's inputs are there.
func ready(t *supervisor.Run) error {
	for _, in := range t.Inputs {
		if _, err := os.Stat(in.Path); err != nil {
			return fmt.Errorf("input %s is not ready here: %w", in.Target, supervisor.Errno(err))
		}
	}
	return nil
}

var errNoReport = errors.New("the sandbox did not say why")
