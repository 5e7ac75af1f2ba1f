package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// Slurm is a whole cluster on this machine: a controller, nodes, and slurmrestd.
// It needs root: munge, the controller and slurmrestd each want a user of their own.
type Slurm struct {
	*Folder
	Conf  string // slurm.conf, for SLURM_CONF
	URL   string // of slurmrestd; "" without
	Nodes int

	munge, ctld, rest *Process
	slurmd            []*Process
	bin               map[string]string
	mu                sync.Mutex
	memory            int
}

// SlurmOptions say what the cluster has.
type SlurmOptions struct {
	Nodes int  // each with 8 CPUs, 16,000 MB and 4 GPUs of type "fake"; default 2
	REST  bool // with slurmrestd

	Memory int // of each node in MB, whatever this machine has; default 16,000
}

// StartSlurm starts a cluster and waits until its nodes are idle.
func StartSlurm(ctx context.Context, o SlurmOptions) (*Slurm, error) {
	programs := []string{"munged", "slurmctld", "slurmd", "sinfo", "scontrol", "setpriv"}
	if o.REST {
		programs = append(programs, "slurmrestd")
	}
	bin, err := Need(programs...)
	if err != nil {
		return nil, err
	}
	if os.Getuid() != 0 {
		return nil, pcm.Errorf(pcm.NotFound, "%w: a private Slurm needs root", ErrMissing)
	}
	f, err := NewFolder("slurm")
	if err != nil {
		return nil, err
	}
	s := &Slurm{Folder: f, Nodes: max(o.Nodes, 1), bin: bin, memory: cmp.Or(o.Memory, 16000)}
	if o.Nodes == 0 {
		s.Nodes = 2
	}
	if err := s.start(ctx, o); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Slurm) start(ctx context.Context, o SlurmOptions) error {
	ports, err := loopbackPorts(s.Nodes + 2)
	if err != nil {
		return err
	}
	if err := os.Chmod(s.Dir, 0o755); err != nil {
		return err
	}
	secret := func(n int) string { b := make([]byte, n); rand.Read(b); return string(b) }
	for name, owner := range map[string]string{"state": "slurm", "log": "slurm", "munge": "munge", "run": "root"} {
		if err := s.folder(name, owner); err != nil {
			return err
		}
	}
	for _, file := range []struct {
		name, text, owner string
		mode              os.FileMode
	}{
		{"munge/key", secret(128), "munge", 0o400}, {"state/jwt.key", secret(32), "slurm", 0o600}, {"log/jobcomp.txt", "", "slurm", 0o644},
		{"gres.conf", "Name=gpu Type=fake File=/dev/tty[1-4]\n", "root", 0o644}, {"cgroup.conf", "CgroupAutomount=no\n", "root", 0o644},
	} {
		if err := s.Write(file.name, file.text, file.mode); err != nil {
			return err
		}
		if err := s.give(file.name, file.owner); err != nil {
			return err
		}
	}
	s.Conf = s.Path("slurm.conf")
	if err := s.Write("slurm.conf", s.conf(ports), 0o644); err != nil {
		return err
	}
	if s.munge, err = s.as("munge", "munged", nil, "--foreground", "--force", "--num-threads=4", "--key-file="+s.Path("munge/key"),
		"--socket="+s.Path("munge/sock"), "--pid-file="+s.Path("munge/pid"), "--log-file="+s.Path("munge/log"), "--seed-file="+s.Path("munge/seed")); err != nil {
		return err
	}
	ready := func(context.Context) error { _, err := os.Stat(s.Path("munge/sock")); return err }
	if err := s.munge.Ready(ctx, ready); err != nil {
		return err
	}
	if err := s.StartController(); err != nil {
		return err
	}
	for i := 1; i <= s.Nodes; i++ {
		if err := os.MkdirAll(s.Path("run", fmt.Sprintf("spool.n%d", i)), 0o755); err != nil {
			return err
		}
		p, err := s.Start(fmt.Sprintf("slurmd.n%d", i), s.env(), s.bin["slurmd"], "-D", "-N", fmt.Sprintf("n%d", i))
		if err != nil {
			return err
		}
		s.slurmd = append(s.slurmd, p)
	}
	if o.REST {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[s.Nodes+1]))
		// Neither root nor SlurmUser may run it; with SLURM_JWT it needs no credential of its own.
		s.rest, err = s.as("nobody", "slurmrestd", []string{"SLURM_JWT=daemon"}, "-a", "rest_auth/jwt", "-s", "openapi/v0.0.38,openapi/v0.0.37,openapi/v0.0.36", address)
		if err != nil {
			return err
		}
		s.URL = "http://" + address
		dial := func(ctx context.Context) error {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err == nil {
				c.Close()
			}
			return err
		}
		if err := s.rest.Ready(ctx, dial); err != nil {
			return err
		}
	}
	return s.WaitIdle(ctx)
}

// conf is slurm.conf. Timings are short, so that faults show soon.
func (s *Slurm) conf(ports []int) string {
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	var b strings.Builder
	fmt.Fprintf(&b, `ClusterName=test
SlurmctldHost=%[1]s(127.0.0.1)
SlurmctldPort=%[2]d
AuthType=auth/munge
AuthInfo=socket=%[3]s/munge/sock
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key=%[3]s/state/jwt.key
SlurmUser=slurm
StateSaveLocation=%[3]s/state
SlurmdSpoolDir=%[3]s/run/spool.%%n
SlurmctldPidFile=%[3]s/run/ctld.pid
SlurmdPidFile=%[3]s/run/slurmd.%%n.pid
SlurmctldLogFile=%[3]s/log/ctld.log
SlurmdLogFile=%[3]s/log/slurmd.%%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
JobCompType=jobcomp/filetxt
JobCompLoc=%[3]s/log/jobcomp.txt
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=128
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
MaxJobCount=50000
ReturnToService=2
SlurmctldTimeout=120
SlurmdTimeout=60
SlurmdParameters=config_overrides
MinJobAge=600
KillWait=2
MaxArraySize=10001
NodeName=DEFAULT CPUs=8 RealMemory=%[4]d Gres=gpu:fake:4 State=UNKNOWN
`, host, ports[s.Nodes], s.Dir, s.memory)
	for i := 1; i <= s.Nodes; i++ {
		fmt.Fprintf(&b, "NodeName=n%d NodeHostname=%s NodeAddr=127.0.0.1 Port=%d\n", i, host, ports[i-1])
	}
	fmt.Fprintf(&b, "PartitionName=main Nodes=n[1-%d] Default=YES MaxTime=INFINITE State=UP PriorityTier=1\n", s.Nodes)
	b.WriteString("PartitionName=short Nodes=n1 MaxTime=1 State=UP PriorityTier=1\nPartitionName=urgent Nodes=n1 MaxTime=60 State=UP PriorityTier=10\n")
	return b.String()
}

func (s *Slurm) env() []string { return []string{"SLURM_CONF=" + s.Conf} }

// as starts a program as another user.
func (s *Slurm) as(name, program string, env []string, args ...string) (*Process, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, pcm.Errorf(pcm.NotFound, "%w: there is no user %s", ErrMissing, name)
	}
	path := s.bin[program]
	args = append([]string{"--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", path}, args...)
	return s.Start(program, append(s.env(), env...), s.bin["setpriv"], args...)
}

func (s *Slurm) folder(name, owner string) error {
	if err := os.MkdirAll(s.Path(name), 0o755); err != nil {
		return err
	}
	return s.give(name, owner)
}

func (s *Slurm) give(name, owner string) error {
	u, err := user.Lookup(owner)
	if err != nil {
		return pcm.Errorf(pcm.NotFound, "%w: there is no user %s", ErrMissing, owner)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return os.Chown(s.Path(name), uid, gid)
}

// Command runs one of Slurm's commands, or any other, against the cluster.
func (s *Slurm) Command(ctx context.Context, name string, args ...string) (string, error) {
	return s.Run(ctx, s.env(), name, args...)
}

// Token makes a JWT for the user.
func (s *Slurm) Token(ctx context.Context, name string, life time.Duration) (string, error) {
	out, err := s.Command(ctx, s.bin["scontrol"], "token", "username="+name, fmt.Sprintf("lifespan=%d", int(life.Seconds())))
	if err != nil {
		return "", err
	}
	_, token, ok := strings.Cut(strings.TrimSpace(out), "=")
	if !ok {
		return "", pcm.Errorf(pcm.Unavailable, "scontrol token printed %q", out)
	}
	return token, nil
}

// WaitIdle waits until all nodes can be given jobs.
func (s *Slurm) WaitIdle(ctx context.Context) error {
	want := strconv.Itoa(s.Nodes)
	return s.controller().Ready(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		out, err := s.Command(ctx, s.bin["sinfo"], "-h", "-p", "main", "-t", "idle,mixed,allocated", "-o", "%D")
		n := 0
		for f := range strings.FieldsSeq(out) {
			k, _ := strconv.Atoi(f)
			n += k
		}
		if err == nil && strconv.Itoa(n) != want {
			err = fmt.Errorf("%d of %s nodes are up", n, want)
		}
		return err
	})
}

func (s *Slurm) controller() *Process { s.mu.Lock(); defer s.mu.Unlock(); return s.ctld }

// StartController starts slurmctld, with what it remembers.
func (s *Slurm) StartController() error {
	p, err := s.Start("slurmctld", s.env(), s.bin["slurmctld"], "-D")
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ctld = p
	s.mu.Unlock()
	return nil
}

// KillController ends slurmctld as a crash would.
func (s *Slurm) KillController() { s.controller().Kill() }

// HangController stops slurmctld from answering until resume is called.
func (s *Slurm) HangController() (resume func()) { return s.controller().Hang() }

// NodePID is the process of the n-th node's slurmd, from 1.
func (s *Slurm) NodePID(n int) int { return s.slurmd[n-1].PID() }

// KillNode ends the slurmd of a node, from 1, with the tasks that it runs.
func (s *Slurm) KillNode(n int) { s.slurmd[n-1].Kill() }

// Close ends the cluster.
func (s *Slurm) Close() error {
	var all []*Process
	if s.rest != nil {
		all = append(all, s.rest)
	}
	all = append(all, s.slurmd...)
	if c := s.controller(); c != nil {
		all = append(all, c)
	}
	if s.munge != nil {
		all = append(all, s.munge)
	}
	for _, p := range all {
		p.Signal(syscall.SIGCONT)
		p.Stop(3 * time.Second)
	}
	// What is left are jobs, each with a process that waits for its controller.
	for try := 0; try < 100 && len(s.processes()) > 0; try++ {
		for pid := range s.processes() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		<-time.After(10 * time.Millisecond)
	}
	return s.Folder.Close()
}

// loopbackPorts gives ports on which nobody listens at the moment.
func loopbackPorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "no free port: %w", err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
