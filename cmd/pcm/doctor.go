package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/process"
	"github.com/jointcloud/pcm/adapters/wasm"
	"github.com/jointcloud/pcm/node"
	"github.com/jointcloud/pcm/node/api"
)

// Bounds of what a machine should have.
const (
	doctorTimeout = 30 * time.Second
	fsyncTries    = 40
	fsyncWarn     = 20 * time.Millisecond  // median: a cell commits no faster than that
	fsyncSlow     = 200 * time.Millisecond // 99th percentile: elections are lost by more
	wantFiles     = 4096
	wantInodes    = 10_000
)

func (a *app) doctorCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "doctor", Short: "Look for what is wrong with this node and its machine, and say what to do", Args: noArgs,
		Long: `Checks this machine (disk, limits, cgroups, sandbox), the configuration, and,
while the node runs, what that can tell (back ends, cell, clock, passport). Reads
the configuration as 'pcm up' does. Ends with 0 if nothing failed, else with 1.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
			defer cancel()
			checkup := a.checkup(ctx, file)
			if err := a.print(checkup, func(t *table) { drawCheckup(t, checkup) }); err != nil {
				return err
			}
			if !checkup.OK {
				return exitStatus(exitFailed)
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "config", "", "YAML `FILE` with the configuration (PCM_CONFIG)")
	return c
}

func drawCheckup(t *table, c api.Checkup) {
	count := map[string]int{}
	for _, f := range c.Items {
		count[f.Status]++
		t.row(f.Status, f.Check, f.Text)
		if f.Hint != "" {
			t.row("", "", "→ "+f.Hint)
		}
	}
	t.text("%d ok, %s, %s.", count[api.CheckOK], plural(count[api.CheckWarn], "warning"), plural(count[api.CheckFail], "failure"))
}

// checkup makes all checks that can be made from here.
func (a *app) checkup(ctx context.Context, file string) api.Checkup {
	if file == "" {
		file = a.getenv("PCM_CONFIG")
	}
	dir, named := a.dataDir()
	given := dir
	if !named {
		given = ""
	}
	cfg, err := loadConfig(file, given, a.getenv, func(c *Config) {
		if named {
			c.Data = dir
		}
		if a.api != "" {
			c.API = a.api
		}
	})
	if err != nil {
		return api.NewCheckup("", []api.Finding{{Check: "configuration", Status: api.CheckFail, Text: err.Error(), Hint: "mend it; configs/pcm.example.yaml explains every key"}})
	}
	list := []api.Finding{{Check: "configuration", Status: api.CheckOK, Text: "good; data folder " + cfg.Data}}
	running, _ := lockHeld(cfg.Data)
	var live api.Checkup
	var asked error
	if c, err := a.client(); err == nil {
		live, asked = c.Doctor(ctx)
		c.Close()
	} else {
		asked = err
	}
	switch {
	case asked == nil:
		list = append(list, api.Finding{Check: "API", Status: api.CheckOK, Text: "the node answers"})
	case running:
		list = append(list, api.Finding{Check: "API", Status: api.CheckFail, Text: "the node runs and doesn't answer: " + asked.Error(), Hint: "see its log; if it hangs, end it and start it again: tasks go on under their supervisor"})
	default:
		list = append(list, api.Finding{Check: "API", Status: api.CheckWarn, Text: "the node doesn't run: only this machine is checked", Hint: "start it with 'pcm up', and ask again"})
		list = append(list, checkPorts(cfg)...)
	}
	list = append(list, checkDisk(cfg)...)
	list = append(list, checkLimits()...)
	list = append(list, checkCgroups())
	if cfg.Adapters.Process.Enabled {
		list = append(list, checkSandbox(ctx, cfg)...)
	}
	if asked != nil && !running {
		list = append(list, a.checkAdapters(ctx, cfg)...)
	}
	return api.NewCheckup(or(live.ID, cfg.Name), append(list, live.Items...))
}

// checkPorts tells whether a node could listen where it is told to.
func checkPorts(cfg Config) []api.Finding {
	var list []api.Finding
	try := func(what, hint string, listen func() error) {
		if err := listen(); err != nil {
			list = append(list, api.Finding{Check: "ports", Status: api.CheckFail, Text: fmt.Sprintf("can't listen on %s: %v", what, err), Hint: hint})
			return
		}
		list = append(list, api.Finding{Check: "ports", Status: api.CheckOK, Text: "free: " + what})
	}
	tcp := func(addr string) func() error {
		return func() error {
			l, err := net.Listen("tcp", addr)
			if err == nil {
				err = l.Close()
			}
			return err
		}
	}
	try(cfg.API+" (API)", "see who has it (ss -ltnp), or name another with --api", tcp(cfg.API))
	if cfg.LogListen != "" {
		try(cfg.LogListen+" (public log)", "see who has it (ss -ltnp), or name another with --log-listen", tcp(cfg.LogListen))
	}
	for _, s := range cfg.Listen {
		try(s, "see who has it (ss -lntup), or name another with --listen", func() error {
			m, err := multiaddr.NewMultiaddr(s)
			if err != nil {
				return err
			}
			base, _ := multiaddr.SplitFunc(m, func(c multiaddr.Component) bool { // the part that the system knows
				return !slices.Contains([]int{multiaddr.P_IP4, multiaddr.P_IP6, multiaddr.P_TCP, multiaddr.P_UDP}, c.Protocol().Code)
			})
			network, addr, err := manet.DialArgs(base)
			if err != nil {
				return err
			}
			if strings.HasPrefix(network, "udp") {
				p, err := net.ListenPacket(network, addr)
				if err == nil {
					err = p.Close()
				}
				return err
			}
			return tcp(addr)()
		})
	}
	return list
}

// checkDisk measures the disk of the data folder, or of the folder where that will be made.
func checkDisk(cfg Config) []api.Finding {
	dir := cfg.Data
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	var list []api.Finding
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []api.Finding{{Check: "disk", Status: api.CheckFail, Text: fmt.Sprintf("can't look at %s: %v", dir, err), Hint: "see whether it is mounted, and may be read"}}
	}
	free := pcm.Bytes(st.Bavail) * pcm.Bytes(st.Bsize)
	reserve, _ := pcm.ParseBytes(cfg.Store.Reserve) // it was validated
	f := api.Finding{Check: "disk", Status: api.CheckOK, Text: fmt.Sprintf("%s free in %s, %s are kept free for the ledger", free, dir, reserve)}
	switch {
	case free < reserve/2:
		f.Status, f.Hint = api.CheckFail, "make room, or lower store.reserve: this peer sells nothing meanwhile"
	case free < reserve*2:
		f.Status, f.Hint = api.CheckWarn, "make room: below the reserve, inputs and outputs are refused"
	}
	list = append(list, f)
	if st.Files > 0 {
		f := api.Finding{Check: "inodes", Status: api.CheckOK, Text: fmt.Sprintf("%d of %d free", st.Ffree, st.Files)}
		if st.Ffree < wantInodes {
			f.Status, f.Hint = api.CheckWarn, "delete small files: each task and each artifact needs some inodes"
		}
		list = append(list, f)
	}
	return append(list, checkFsync(dir))
}

// checkFsync measures how long it takes until what is written is on the disk.
func checkFsync(dir string) api.Finding {
	f := api.Finding{Check: "fsync", Status: api.CheckOK}
	var took []time.Duration
	file, err := os.CreateTemp(dir, ".pcm-doctor-*")
	if err == nil {
		defer os.Remove(file.Name())
		defer file.Close()
		block := make([]byte, 4096)
		for began := time.Now(); err == nil && len(took) < fsyncTries && time.Since(began) < 5*time.Second; {
			at := time.Now()
			if _, err = file.Write(block); err == nil {
				err = file.Sync()
			}
			took = append(took, time.Since(at))
		}
	}
	if err != nil {
		f.Status, f.Text, f.Hint = api.CheckFail, fmt.Sprintf("can't write to %s: %v", dir, err), "the folder must be this user's, and writable"
		return f
	}
	slices.Sort(took)
	half, most := took[len(took)/2], took[len(took)*99/100]
	f.Text = fmt.Sprintf("half of %d writes of 4 KiB are on the disk within %s, 99%% within %s", len(took), half.Round(10*time.Microsecond), most.Round(10*time.Microsecond))
	if half > fsyncWarn || most > fsyncSlow {
		f.Status, f.Hint = api.CheckWarn, "put the data folder on an SSD of this machine: each decision of the cell waits for this; a peer with a slow disk should not vote (cell.voter_eligible: false)"
	}
	return f
}

// checkLimits looks at what the system allows this user.
func checkLimits() []api.Finding {
	var list []api.Finding
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		f := api.Finding{Check: "open files", Status: api.CheckOK, Text: fmt.Sprintf("at most %d for each process", lim.Max)}
		if lim.Max < wantFiles {
			f.Status, f.Hint = api.CheckWarn, fmt.Sprintf("raise it to %d or more (LimitNOFILE= in the systemd unit, or ulimit -n): connections and tasks need them", wantFiles)
		}
		list = append(list, f)
	}
	return append(list, checkUserNamespaces(os.ReadFile))
}

// checkUserNamespaces tells whether users may make user namespaces, which sandboxes need.
func checkUserNamespaces(read func(string) ([]byte, error)) api.Finding {
	f := api.Finding{Check: "user namespaces", Status: api.CheckOK, Text: "allowed"}
	for _, k := range []struct{ file, bad, hint string }{
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap and pcm"},
	} {
		raw, err := read(k.file)
		if err == nil && strings.TrimSpace(string(raw)) == k.bad {
			f.Status, f.Text = api.CheckWarn, "not for everybody: "+filepath.Base(k.file)+" is "+k.bad
			f.Hint = "sandboxes need them, unless the node runs as root: " + k.hint
			return f
		}
	}
	return f
}

// checkCgroups tells which hierarchy this machine has.
func checkCgroups() api.Finding {
	return cgroupsAt("/sys/fs/cgroup", "/proc/self/cgroup")
}

func cgroupsAt(root, self string) api.Finding {
	f := api.Finding{Check: "cgroups", Status: api.CheckOK}
	if raw, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		f.Text = "version 2, controllers: " + or(strings.TrimSpace(string(raw)), "none")
		own, _ := os.ReadFile(self)
		for line := range strings.Lines(string(own)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				f.Text += "; this process is in " + path
			}
		}
		if !slices.Contains(strings.Fields(string(raw)), "memory") {
			f.Status, f.Hint = api.CheckWarn, "without the memory controller, memory is held by rlimits, which is weaker"
		}
		return f
	}
	var found []string
	for _, name := range []string{"memory", "cpu", "pids", "freezer"} {
		if info, err := os.Stat(filepath.Join(root, name)); err == nil && info.IsDir() {
			found = append(found, name)
		}
	}
	f.Text = "version 1, controllers: " + strings.Join(found, " ")
	if !slices.Contains(found, "memory") {
		f.Status, f.Text = api.CheckWarn, "none that can be used"
		f.Hint = "memory of tasks is held by rlimits, which is weaker: mount cgroups, version 2 if possible"
	}
	return f
}

// checkSandbox tries what keeps tasks of the process adapter in, in a folder that
// is deleted then.
func checkSandbox(ctx context.Context, cfg Config) []api.Finding {
	p := cfg.Adapters.Process
	fail := func(err error) []api.Finding {
		return []api.Finding{{
			Check: "sandbox", Status: api.CheckFail, Text: err.Error(),
			Hint: "install bubblewrap (apt-get install bubblewrap), or set adapters.process.sandbox to auto",
		}}
	}
	dir, err := os.MkdirTemp("", "pcm-doctor-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	r, err := process.NewRunner(process.RunnerConfig{Dir: dir, Sandbox: p.Sandbox})
	if err != nil {
		return fail(err)
	}
	swept := r.Sweep(nil)
	facts := r.Facts()
	defer r.Close(ctx)
	f := api.Finding{Check: "sandbox", Status: api.CheckOK, Text: fmt.Sprintf("%s, namespaces: %s", facts.Sandbox, facts.Labels["namespaces"])}
	if process.Weak(facts) && facts.Sandbox != process.SandboxNone {
		f.Status = api.CheckWarn
		f.Hint = "without cgroups nothing holds all processes of a task: allow user namespaces or cgroups; until then programs are sold to the own account only"
	}
	if facts.Sandbox == process.SandboxNone {
		f.Status, f.Text = api.CheckWarn, "none: programs see this machine's files and network"
		f.Hint = "install bubblewrap (apt-get install bubblewrap); until then programs are sold to the own account only"
		if p.AllowUnsandboxed {
			f.Status, f.Text = api.CheckFail, "none, and programs are sold to other accounts all the same (adapters.process.allow_unsandboxed)"
		}
	}
	l := api.Finding{Check: "limits of tasks", Status: api.CheckOK, Text: "by " + facts.Labels["limits"]}
	switch {
	case swept != nil:
		l.Status, l.Text, l.Hint = api.CheckWarn, "can't be tried: "+swept.Error(), "see the supervisor's log, tasks/supervisor.log in the data folder"
	case !strings.HasPrefix(facts.Labels["limits"], "cgroup"):
		l.Status, l.Hint = api.CheckWarn, "this user can't make cgroups: run the node as a systemd service with Delegate=yes, as configs/pcm.service does; memory is held by rlimits, which is weaker"
	}
	return []api.Finding{f, l}
}

// checkAdapters asks the back ends for their pools, those that are not this
// machine itself, when no node runs that could.
func (a *app) checkAdapters(ctx context.Context, cfg Config) []api.Finding {
	cfg.Adapters.Process.Enabled, cfg.Adapters.Wasm.Enabled = false, false
	list, err := sales(cfg, surroundings{Version: a.versionString(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return []api.Finding{{Check: "back ends", Status: api.CheckFail, Text: err.Error(), Hint: "mend 'adapters' in the configuration"}}
	}
	var all []adapters.Adapter
	for _, s := range list {
		if name := s.Adapter.Name(); name != process.Name && name != wasm.Name {
			all = append(all, s.Adapter)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return node.CheckBackEnds(ctx, all)
}
