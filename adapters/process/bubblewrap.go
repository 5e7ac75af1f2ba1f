package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// bubblewrap builds sandboxes by bwrap(1): all namespaces new, no network, the
// system's programs and libraries read-only, nothing else of the host, and the
// same system calls refused as by landlock.
type bubblewrap struct {
	path   string
	spaces []string // what all sandboxes have in common: namespaces,
	system []string // and what they see
	sized  bool     // it can bound what a task keeps in memory as files
	scoped bool     // with the network, abstract sockets are kept from root's tasks
	filter string   // file of the system calls to refuse; "": none
}

// findBubblewrap tries it out: that it is installed doesn't mean that the kernel
// or a policy lets it work.
func findBubblewrap(cfg RunnerConfig) (*bubblewrap, error) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return nil, errors.New("bwrap is not in PATH")
	}
	b := &bubblewrap{path: bwrap}
	// Others would need no_new_privs for it, with which a bwrap that is set-user-ID doesn't work.
	if abi, err := landlock.LandlockGetABIVersion(); err == nil && abi >= 6 && os.Geteuid() == 0 {
		b.scoped = true
	}
	parts, err := system(cfg)
	if err != nil {
		return nil, err
	}
	b.spaces = []string{
		"--unshare-all", "--unshare-user", "--die-with-parent", "--cap-drop", "ALL",
		"--uid", "65534", "--gid", "65534", "--hostname", "task", "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev",
	}
	for _, p := range parts {
		switch {
		case p.From == "":
			b.system = append(b.system, "--tmpfs", p.To)
		case p.Link:
			b.system = append(b.system, "--symlink", p.From, p.To)
		default:
			b.system = append(b.system, "--ro-bind", p.From, p.To)
		}
	}
	if b.filter, err = writeFilter(cfg.Dir); err != nil {
		return nil, err
	}
	plain := b.spaces
	b.spaces = append([]string{"--disable-userns"}, plain...) // since 0.8.0
	b.sized = true                                            // since 0.7.0
	if err = b.try(); err != nil {
		b.spaces = plain
		err = b.try()
	}
	if err != nil {
		b.sized = false
		err = b.try()
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (b *bubblewrap) name() string     { return SandboxBubblewrap }
func (b *bubblewrap) namespaces() bool { return true }

func (b *bubblewrap) try() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	argv := append(b.common(1<<20), "--remount-ro", "/dev")
	cmd := exec.CommandContext(ctx, b.path)
	if b.filter != "" {
		f, err := os.Open(b.filter)
		if err != nil {
			return err
		}
		defer f.Close()
		argv = append(argv, "--seccomp", "3")
		cmd.ExtraFiles = []*os.File{f}
	}
	cmd.Args = append(append([]string{b.path}, argv...), "--", "true")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// common begins every command line. What a task may fill beside its own folder
// is kept in memory, and bounded. /dev is still to be made read-only.
func (b *bubblewrap) common(size pcm.Bytes) []string {
	args := slices.Clone(b.spaces)
	for _, dir := range []string{"/tmp", "/run", "/dev/shm"} {
		if b.sized && size > 0 {
			args = append(args, "--size", strconv.FormatInt(int64(size), 10))
		}
		args = append(args, "--tmpfs", dir)
	}
	return append(args, b.system...)
}

// prepare makes the command line of one task. The task's environment is set
// inside: given to bwrap itself, LD_PRELOAD would act outside.
func (b *bubblewrap) prepare(t *supervisor.Run, extra surroundings) (*spec, error) {
	if err := ready(t); err != nil {
		return nil, err
	}
	argv := append([]string{"bwrap"}, b.common(extra.scratch)...)
	if extra.network {
		argv = append(argv, "--share-net", "--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf")
	}
	for _, dev := range extra.devices {
		argv = append(argv, "--dev-bind", dev, dev)
	}
	argv = append(argv, "--remount-ro", "/dev") // once all stand in it
	for _, lib := range extra.libs {
		argv = append(argv, "--ro-bind-try", lib, lib)
	}
	argv = append(argv, "--bind", t.Work, workInside, "--chdir", workInside)
	for _, in := range t.Inputs {
		argv = append(argv, "--ro-bind", in.Path, path.Join(workInside, in.Target))
	}
	argv = append(argv, "--remount-ro", "/", "--clearenv")
	env := environ(t.Task, workInside, extra)
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		argv = append(argv, "--setenv", k, v)
	}
	argv = append(argv, "--json-status-fd", "3")
	s := &spec{
		path: b.path, dir: "/", program: t.Command[0], boxed: true, wrappers: 1,
		// By these a later supervisor knows a survivor.
		env:  marks(t),
		cell: cell{Walls: SandboxBubblewrap, Spaced: true, Network: extra.network, Work: t.Work, Env: env},
		ran:  func(report []byte) bool { return bytes.Contains(report, []byte(`"exit-code"`)) },
	}
	if err := s.reports(); err != nil {
		return nil, err
	}
	if ours(b.path) {
		if err := s.runPrivate(); err != nil {
			s.close()
			return nil, err
		}
	}
	if b.filter != "" {
		f, err := os.Open(b.filter)
		if err != nil {
			s.close()
			return nil, err
		}
		s.pass = append(s.pass, f)
		argv = append(argv, "--seccomp", "4")
	}
	s.argv = append(append(argv, "--"), t.Command...)
	if extra.network && b.scoped {
		program := s.path
		if s.copied != nil { // which is let go of before it is run
			s.pass, s.copied = append(s.pass, s.copied), nil
			program = fmt.Sprintf("/proc/self/fd/%d", cellReport+len(s.pass))
		}
		s.argv = append([]string{cellArg, "scope", program}, s.argv...)
		s.path = "/proc/self/exe"
	}
	return s, nil
}

// explain tells why bubblewrap ended without running the program.
func (b *bubblewrap) explain(exit *supervisor.Exit, _ *spec, program, stderr string) {
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
