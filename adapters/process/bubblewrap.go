package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// workInside is where a sandboxed task finds its working folder.
const workInside = "/work"

// bubblewrap builds sandboxes by bwrap(1): all namespaces new, no network, the
// system's programs and libraries read-only, nothing else of the host.
type bubblewrap struct {
	path string
	args []string // what all sandboxes have in common
}

// findBubblewrap tries it out: that it is installed doesn't mean that the kernel
// or a policy lets it work.
func findBubblewrap(cfg RunnerConfig) (*bubblewrap, error) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return nil, errors.New("bwrap is not in PATH")
	}
	b := &bubblewrap{path: bwrap}
	etc, err := synthetic(cfg.Dir)
	if err != nil {
		return nil, err
	}
	b.args = []string{
		"--unshare-all", "--unshare-user", "--die-with-parent", "--cap-drop", "ALL",
		"--uid", "65534", "--gid", "65534", "--hostname", "task",
		"--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run",
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		info, err := os.Lstat("/" + name)
		if err != nil {
			continue
		}
		if info.IsDir() {
			b.args = append(b.args, "--ro-bind", "/"+name, "/"+name)
		} else if to, err := os.Readlink("/" + name); err == nil {
			b.args = append(b.args, "--symlink", to, "/"+name)
		}
	}
	for _, name := range []string{"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "localtime", "nsswitch.conf", "mime.types"} {
		b.args = append(b.args, "--ro-bind-try", "/etc/"+name, "/etc/"+name)
	}
	for _, name := range []string{"passwd", "group", "hosts"} {
		b.args = append(b.args, "--ro-bind", filepath.Join(etc, name), "/etc/"+name)
	}
	for _, dir := range cfg.ReadOnly {
		b.args = append(b.args, "--ro-bind", dir, dir)
	}
	for _, dir := range append([]string{cfg.Dir}, cfg.Hide...) {
		for _, shown := range append([]string{"/usr"}, cfg.ReadOnly...) {
			if rel, err := filepath.Rel(shown, dir); err == nil && filepath.IsLocal(rel) {
				b.args = append(b.args, "--tmpfs", dir)
			}
		}
	}
	plain := b.args
	b.args = append([]string{"--disable-userns"}, plain...) // since 0.8.0
	if err = b.try(); err != nil {
		b.args = plain
		err = b.try()
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (b *bubblewrap) try() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.path, append(append([]string{}, b.args...), "--", "true")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
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
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return etc, nil
}

// prepare makes the command line of one task. The task's environment is set
// inside: given to bwrap itself, LD_PRELOAD would act outside.
func (b *bubblewrap) prepare(t *supervisor.Run) (*spec, error) {
	argv := append([]string{"bwrap"}, b.args...)
	argv = append(argv, "--bind", t.Work, workInside, "--chdir", workInside)
	for _, in := range t.Inputs {
		if _, err := os.Stat(in.Path); err != nil {
			return nil, fmt.Errorf("input %s is not ready here: %w", in.Target, errno(err))
		}
		argv = append(argv, "--ro-bind", in.Path, path.Join(workInside, in.Target))
	}
	argv = append(argv, "--remount-ro", "/", "--clearenv")
	for _, e := range supervisor.Environ(t.Task, workInside, defaultPath) {
		k, v, _ := strings.Cut(e, "=")
		argv = append(argv, "--setenv", k, v)
	}
	argv = append(argv, "--json-status-fd", "3", "--")
	argv = append(argv, t.Command...)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &spec{
		path: b.path, argv: argv, dir: "/", program: t.Command[0], bwrapped: true, report: r, reportW: w,
		// By these a later supervisor knows a survivor.
		env: []string{"PATH=" + defaultPath, "HOME=" + t.Work, "PCM_ATTEMPT=" + t.Key.String()},
	}, nil
}

// explain tells why bubblewrap ended without running the program.
func (b *bubblewrap) explain(exit *supervisor.Exit, program, stderr string) {
	line, _, _ := strings.Cut(stderr, "\n")
	fault, isExec := strings.CutPrefix(line, "bwrap: execvp "+program+": ")
	switch {
	case isExec && fault == "No such file or directory":
		*exit = supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 127, Reason: fmt.Sprintf("program %q was not found in the sandbox, or its interpreter was not", program)}
	case isExec:
		*exit = supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 126, Reason: fmt.Sprintf("program %q can't be run: %s", program, strings.ToLower(fault))}
	default:
		*exit = seller("the sandbox could not be made: %s", line)
	}
}
