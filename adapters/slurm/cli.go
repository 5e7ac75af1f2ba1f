package slurm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// cli reaches the controller by Slurm's own commands, which hang when it does.
type cli struct {
	cfg  Config
	user string // whose jobs we look at, a number
	gate chan struct{}
}

const (
	maxCommands = 4         // at once
	maxAnswer   = 256 << 20 // bytes of one answer
)

func newCLI(cfg Config) (*cli, error) {
	c := &cli{cfg: cfg, user: strconv.Itoa(os.Getuid()), gate: make(chan struct{}, maxCommands)}
	if u, err := user.Current(); err == nil {
		c.user = u.Username
	}
	return c, nil
}

// bounded keeps the first bytes of what is written to it.
type bounded struct {
	bytes.Buffer
	limit int
	over  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		b.over = true
		return 0, errors.New("too much output")
	}
	return b.Buffer.Write(p)
}

// run runs one of Slurm's commands within the time limit.
func (c *cli) run(ctx context.Context, stdin, command string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	select {
	case c.gate <- struct{}{}:
		defer func() { <-c.gate }()
	case <-ctx.Done():
		return "", pcm.Errorf(pcm.Unavailable, "%s: others of Slurm's commands hang here", command)
	}
	program := command
	if c.cfg.Commands != "" {
		program = filepath.Join(c.cfg.Commands, command)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LC_ALL=C", "TZ=UTC",
		"SLURM_BITSTR_LEN=0", "SLURM_TIME_FORMAT=%s",
	}
	if conf := c.cfg.Conf; conf != "" {
		cmd.Env = append(cmd.Env, "SLURM_CONF="+conf)
	} else if conf := os.Getenv("SLURM_CONF"); conf != "" {
		cmd.Env = append(cmd.Env, "SLURM_CONF="+conf)
	}
	out, errs := bounded{limit: maxAnswer}, bounded{limit: 64 << 10}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	said := oneLine(errs.String())
	switch {
	case err == nil:
		return out.String(), nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return "", pcm.Errorf(pcm.Unavailable, "Slurm's command %s is not installed here: install Slurm's client, or say where its commands are", command)
	case ctx.Err() != nil:
		return "", pcm.Errorf(pcm.Unavailable, "Slurm does not answer: %s was given up after its time limit", command)
	case out.over:
		return "", pcm.Errorf(pcm.Unavailable, "%s printed more than %s", command, pcm.Bytes(maxAnswer))
	case killedBySignal(err): // it may have told the controller before
		return "", pcm.Errorf(pcm.Unavailable, "%s: %w", command, err)
	case transient(said):
		return "", pcm.Errorf(pcm.Unavailable, "%s: %s", command, said)
	case said == "":
		return "", pcm.Errorf(pcm.Refused, "%s: %w", command, err)
	}
	return "", pcm.Errorf(pcm.Refused, "%s", said)
}

func killedBySignal(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled()
}

// oneLine makes what a program said fit for a message.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > 512 {
		s = strings.ToValidUTF8(s[:512], "") + "..."
	}
	return s
}

func (c *cli) submit(ctx context.Context, b batch) (int64, error) {
	// All that run leaves in the environment goes along. With NONE, or a list, Slurm
	// would have a login shell of the user say what it has, for each task of an array.
	args := []string{
		"--parsable", "--export=ALL", "--no-requeue", "--job-name=" + b.Name, "--comment=" + b.Comment,
		"--output=/dev/null", "--error=/dev/null", "--input=/dev/null", "--chdir=" + b.Dir, "--nodes=1", "--ntasks=1",
		"--cpus-per-task=" + strconv.FormatInt(b.cpus(), 10), "--open-mode=append",
	}
	for flag, value := range map[string]string{
		"partition": b.Partition, "account": c.cfg.Account, "qos": c.cfg.QOS, "constraint": c.cfg.Constraint,
		"reservation": c.cfg.Reservation, "gres": b.gres(), "array": b.array(),
	} {
		if value != "" {
			args = append(args, "--"+flag+"="+value)
		}
	}
	if mb := b.megabytes(); mb > 0 {
		args = append(args, "--mem="+strconv.FormatInt(mb, 10)+"M")
	}
	if b.Minutes > 0 {
		args = append(args, "--time="+strconv.FormatInt(b.Minutes, 10))
	}
	out, err := c.run(ctx, b.Script, "sbatch", args...)
	if err != nil {
		return 0, err
	}
	// NUMBER, or NUMBER;CLUSTER
	text, _, _ := strings.Cut(strings.TrimSpace(out), ";")
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 {
		return 0, pcm.Errorf(pcm.Unavailable, "sbatch answered %q instead of a job's number", oneLine(out))
	}
	return id, nil
}

// jobFields are squeue's: the name comes last, since it may be anything.
const jobFields = "%F|%K|%A|%T|%V|%B|%P|%C|%m|%b|%r|%k|%j"

func (c *cli) jobs(ctx context.Context) ([]job, error) {
	out, err := c.run(ctx, "", "squeue", "--noheader", "--states=all", "--user="+c.user, "--format="+jobFields)
	if err != nil {
		return nil, err
	}
	return parseQueue(out), nil
}

// parseQueue reads what squeue prints in the form of jobFields. Lines that it
// can't read are of jobs that are not ours.
func parseQueue(out string) []job {
	var all []job
	for line := range strings.Lines(out) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 13)
		if len(f) != 13 {
			continue
		}
		j := job{Index: -1, State: f[3], Node: f[5], Partition: f[6], Reason: f[10], Comment: f[11], Name: f[12]}
		var err1, err2 error
		j.ID, err1 = strconv.ParseInt(f[0], 10, 64)
		j.Raw, err2 = strconv.ParseInt(f[2], 10, 64)
		if err1 != nil || err2 != nil || j.ID <= 0 {
			continue
		}
		if n, err := strconv.Atoi(f[1]); err == nil {
			j.Index = n
		} else if f[1] != "N/A" && f[1] != "" {
			j.Indexes = f[1]
		}
		j.Submitted = readTime(f[4])
		j.CPUs, _ = strconv.ParseInt(f[7], 10, 64)
		j.Memory = readSize(f[8])
		j.GPUs = sum(parseGres(f[9]))
		all = append(all, j)
	}
	return all
}

func readTime(s string) time.Time {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 {
		return time.Unix(n, 0)
	}
	t, err := time.Parse("2006-01-02T15:04:05", s)
	if err != nil {
		return time.Time{}
	}
	return t
}

// readSize reads "100M", "2G", "1.5T".
func readSize(s string) pcm.Bytes {
	s = strings.TrimRight(strings.TrimSpace(s), "cn")
	for _, u := range []struct {
		suffix string
		shift  uint
	}{{"K", 10}, {"M", 20}, {"G", 30}, {"T", 40}, {"P", 50}} {
		if n, ok := strings.CutSuffix(s, u.suffix); ok {
			f, err := strconv.ParseFloat(n, 64)
			if err != nil || f < 0 || f > 1e9 {
				return 0
			}
			return pcm.Bytes(f * float64(int64(1)<<u.shift))
		}
	}
	n, err := strconv.ParseInt(s, 10, 40)
	if err != nil || n < 0 {
		return 0
	}
	return pcm.Bytes(n) << 20
}

func (c *cli) end(ctx context.Context, ref jobRef) (job, error) {
	out, err := c.run(ctx, "", "scontrol", "--oneliner", "show", "job", ref.String())
	if err != nil {
		if strings.Contains(err.Error(), "Invalid job id") || strings.HasSuffix(err.Error(), " not found") {
			return job{}, pcm.Errorf(pcm.NotFound, "Slurm knows no job %s any more", ref)
		}
		return job{}, err
	}
	for line := range strings.Lines(out) {
		f := fields(line)
		if f["JobName"] != ref.Name {
			continue
		}
		j := job{ID: ref.ID, Index: ref.Index, Name: ref.Name, State: f["JobState"], Reason: f["Reason"], Node: f["BatchHost"], Partition: f["Partition"], Comment: f["Comment"], ended: true}
		j.Raw, _ = strconv.ParseInt(f["JobId"], 10, 64)
		j.Restarts, _ = strconv.Atoi(f["Restarts"])
		code, sig, _ := strings.Cut(f["ExitCode"], ":")
		j.ExitCode, _ = strconv.Atoi(code)
		if n, _ := strconv.Atoi(sig); n > 0 {
			j.ExitCode = 128 + n
		}
		return j, nil
	}
	return job{}, pcm.Errorf(pcm.NotFound, "job %s is not %s any more: Slurm gave its number to another", ref, ref.Name)
}

// fields reads a line of "KEY=VALUE KEY=VALUE", as scontrol prints them.
func fields(line string) map[string]string {
	m := map[string]string{}
	for word := range strings.FieldsSeq(line) {
		if k, v, ok := strings.Cut(word, "="); ok {
			if _, twice := m[k]; !twice {
				m[k] = v
			}
		}
	}
	return m
}

func (c *cli) signal(ctx context.Context, ref jobRef, sig string) error {
	if ref.ID <= 0 && ref.Index >= 0 { // by its name alone it would be the whole array
		return pcm.Errorf(pcm.NotFound, "the number of array %s is not known", ref.Name)
	}
	args := []string{"--quiet", "--name=" + ref.Name, "--user=" + c.user}
	if sig != "" && ref.Index >= 0 { // see cancelPending
		args = append(args, "--state=RUNNING")
	}
	switch sig {
	case "":
	case "KILL":
		args = append(args, "--signal=KILL", "--full")
	default:
		args = append(args, "--signal="+sig, "--batch")
	}
	if ref.ID > 0 {
		args = append(args, ref.String())
	}
	_, err := c.run(ctx, "", "scancel", args...)
	return err
}

// cancelPending implements pendingCanceler. With a filter, as is that by name, a
// scancel of one task of an array that has yet to run takes all that have yet to run
// (22.05): they are one job to the controller. So it is said as what it is.
func (c *cli) cancelPending(ctx context.Context, ref jobRef) error {
	_, err := c.run(ctx, "", "scancel", "--quiet", "--name="+ref.Name, "--user="+c.user, "--state=PENDING", strconv.FormatInt(ref.ID, 10))
	return err
}

func (c *cli) suspend(ctx context.Context, ref jobRef, on bool) error {
	verb := "resume"
	if on {
		verb = "suspend"
	}
	// Number and name are checked together by no option of scontrol.
	if j, err := c.end(ctx, ref); err != nil {
		return err
	} else if (j.State == "SUSPENDED") == on {
		return nil
	}
	_, err := c.run(ctx, "", "scontrol", verb, ref.String())
	return err
}

func (c *cli) partitions(ctx context.Context) ([]partition, error) {
	out, err := c.run(ctx, "", "scontrol", "--oneliner", "show", "partition")
	if err != nil {
		return nil, err
	}
	var all []partition
	for line := range strings.Lines(out) {
		if f := fields(line); f["PartitionName"] != "" {
			all = append(all, partition{Name: f["PartitionName"], Up: f["State"] == "UP", MaxTime: readDuration(f["MaxTime"])})
		}
	}
	return all, nil
}

// readDuration reads "30", "30:00", "2:00:00", "1-12:00:00"; others are no bound.
func readDuration(s string) time.Duration {
	days, rest, ok := strings.Cut(s, "-")
	if !ok {
		days, rest = "0", s
	}
	d, err := strconv.Atoi(days)
	parts := strings.Split(rest, ":")
	if err != nil || len(parts) > 3 || d < 0 || d > 1e5 {
		return 0
	}
	var units []time.Duration
	switch {
	case ok:
		units = []time.Duration{time.Hour, time.Minute, time.Second}
	case len(parts) == 3:
		units = []time.Duration{time.Hour, time.Minute, time.Second}
	default:
		units = []time.Duration{time.Minute, time.Second}
	}
	total := time.Duration(d) * 24 * time.Hour
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 || n > 1e6 {
			return 0
		}
		total += time.Duration(n) * units[i]
	}
	return total
}

func (c *cli) nodes(ctx context.Context) ([]node, error) {
	out, err := c.run(ctx, "", "scontrol", "--detail", "--oneliner", "show", "node")
	if err != nil {
		return nil, err
	}
	var all []node
	for line := range strings.Lines(out) {
		f := fields(line)
		if f["NodeName"] == "" {
			continue
		}
		n := node{Name: f["NodeName"], Address: f["NodeAddr"], Arch: f["Arch"], State: f["State"], GPUs: parseGres(f["Gres"]), GPUsUsed: parseGres(f["GresUsed"])}
		if f["Partitions"] != "" {
			n.Partitions = strings.Split(f["Partitions"], ",")
		}
		if a := f["ActiveFeatures"]; a != "(null)" {
			n.Features = a
		}
		n.CPUs, _ = strconv.ParseInt(f["CPUEfctv"], 10, 64) // since Slurm 22.05
		if n.CPUs <= 0 {
			n.CPUs, _ = strconv.ParseInt(f["CPUTot"], 10, 64)
		}
		n.Allocated, _ = strconv.ParseInt(f["CPUAlloc"], 10, 64)
		n.Memory, n.Used = readSize(f["RealMemory"]), readSize(f["AllocMem"])
		all = append(all, n)
	}
	return all, nil
}

func (c *cli) version(ctx context.Context) (string, error) {
	out, err := c.run(ctx, "", "sinfo", "--version")
	_, v, _ := strings.Cut(strings.TrimSpace(out), " ")
	return v, err
}
