package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// landlocked builds sandboxes by the kernel's own means: this program runs itself
// in new namespaces, lays out what the task may see, gives up what it may do by
// Landlock and seccomp, and starts the task; see inner.go. Where namespaces are
// not to be had the task sees the host's names but can open what it may only.
type landlocked struct {
	cfg      RunnerConfig
	parts    []part
	unspaced error // why there are no namespaces; nil if there are
}

// findLandlock tries it out, with namespaces and without.
func findLandlock(cfg RunnerConfig) (*landlocked, error) {
	abi, err := landlock.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return nil, errors.New("the kernel has no Landlock, or it is not switched on (lsm= on the kernel's command line)")
	}
	if _, err := policy(tcpSockets, false); err != nil {
		return nil, err
	}
	l := &landlocked{cfg: cfg}
	if l.parts, err = system(cfg); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.root(), 0o700); err != nil {
		return nil, err
	}
	if cfg.noSpaces {
		l.unspaced = errors.New("switched off")
	} else {
		l.unspaced = l.try()
	}
	if l.unspaced != nil {
		if abi < 6 {
			return nil, fmt.Errorf("no namespaces (%w), and the kernel's Landlock is of version %d: tasks could send signals to others' processes before version 6, of Linux 6.12", l.unspaced, abi)
		}
		if err := l.try(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *landlocked) name() string     { return SandboxLandlock }
func (l *landlocked) namespaces() bool { return l.unspaced == nil }
func (l *landlocked) root() string     { return filepath.Join(l.cfg.Dir, "sandbox", "root") }

func (l *landlocked) try() error {
	work, err := os.MkdirTemp(filepath.Join(l.cfg.Dir, "sandbox"), "try")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	t := &supervisor.Run{Work: work}
	t.Command = []string{"true"}
	s, err := l.prepare(t, surroundings{scratch: 1 << 20})
	if err != nil {
		return err
	}
	defer s.close()
	cmd := exec.CommandContext(ctx, s.path)
	cmd.Args, cmd.Env, cmd.Dir, cmd.ExtraFiles, cmd.SysProcAttr = s.argv, s.env, s.dir, s.files(), s.sys
	out, err := cmd.CombinedOutput()
	s.launched()
	if err == nil {
		return nil
	}
	if f := l.fault(s.said()); f.Reason != "" {
		return errors.New(f.Reason)
	}
	return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
}

// prepare makes the command line of one task.
func (l *landlocked) prepare(t *supervisor.Run, extra surroundings) (*spec, error) {
	if err := ready(t); err != nil {
		return nil, err
	}
	work := workInside
	c := cell{
		Walls: SandboxLandlock, Spaced: l.namespaces(), Network: extra.network, Root: l.root(), Work: t.Work, Parts: l.parts,
		Scratch: int64(extra.scratch), Devices: extra.devices, Libs: extra.libs, Command: t.Command,
		Memory: uint64(extra.memory),
	}
	if c.Spaced {
		for _, in := range t.Inputs {
			c.Inputs = append(c.Inputs, part{From: in.Path, To: in.Target})
		}
		c.Processes = uint64(extra.processes)
	} else {
		work = t.Work
		c.Listen = t.Port
		for _, in := range t.Inputs {
			if err := supervisor.CopyInput(context.Background(), in, t.Work); err != nil {
				return nil, err
			}
		}
	}
	c.Env = environ(t.Task, work, extra)
	settings, err := c.file()
	if err != nil {
		return nil, err
	}
	s := &spec{
		path: "/proc/self/exe", argv: []string{cellArg, "run"}, dir: "/", program: t.Command[0], boxed: c.Spaced, limited: true, env: marks(t),
		sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		ran: func(report []byte) bool {
			return string(report) == string([]byte{cellBegun, cellStarted}) || !c.Spaced && string(report) == string([]byte{cellBegun})
		},
	}
	if err := s.reports(); err != nil {
		settings.Close()
		return nil, err
	}
	s.pass = append(s.pass, settings)
	s.cell, s.cell.Command = c, nil
	if c.Spaced {
		s.sys.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
		if !extra.network {
			s.sys.Cloneflags |= syscall.CLONE_NEWNET
		}
		s.sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: 65534, HostID: os.Geteuid(), Size: 1}}
		s.sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: 65534, HostID: os.Getegid(), Size: 1}}
		s.sys.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN}
	}
	return s, nil
}

// fault reads what the inner side said before it ended.
func (l *landlocked) fault(report []byte) (f cellFault) {
	report = bytes.TrimLeft(report, string([]byte{cellBegun, cellStarted}))
	json.Unmarshal(report, &f)
	return f
}

// explain tells why the sandbox ended without running the program.
func (l *landlocked) explain(exit *supervisor.Exit, s *spec, _, stderr string) {
	f := l.fault(s.said())
	switch {
	case f.Code != 0:
		*exit = supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: f.Code, Reason: f.Reason}
	case f.Reason != "":
		*exit = seller("the sandbox could not be made: %s", f.Reason)
	default:
		line, _, _ := strings.Cut(stderr, "\n")
		*exit = seller("the sandbox could not be made: %v: %s", errNoReport, line)
	}
}
