package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// place says where a task runs: the runner leaves it in the attempt's folder for
// whoever wants to get there, also after a restart of the daemon.
type place struct {
	PID      int      `json:"pid"`
	Since    uint64   `json:"since"` // when that process began: numbers are used again
	Wrappers int      `json:"wrappers"`
	Groups   []string `json:"groups,omitempty"`
	Cell     cell     `json:"cell"`
}

const placeFile = "process.json"

// settle writes down where the task runs.
func settle(t *supervisor.Run, c *child, s *spec) error {
	p := place{PID: c.proc.Pid, Since: startOf(c.proc.Pid), Wrappers: s.wrappers, Groups: c.group.folders(), Cell: s.cell}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	name := filepath.Join(filepath.Dir(t.Work), placeFile)
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// at finds a running attempt, and the first of its processes.
func (a *Adapter) at(k adapters.Key) (place, int, error) {
	var p place
	data, err := os.ReadFile(filepath.Join(a.Folder(k), placeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return p, 0, pcm.Errorf(pcm.NotFound, "attempt %s does not run here", k)
	}
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return p, 0, pcm.Errorf(pcm.Unavailable, "can't tell where attempt %s runs: %w", k, err)
	}
	if p.Since == 0 || startOf(p.PID) != p.Since {
		return p, 0, pcm.Errorf(pcm.Conflict, "attempt %s does not run any more", k)
	}
	if !p.Cell.Spaced {
		return p, p.PID, nil
	}
	tree := inside(p.PID, p.Wrappers)
	if len(tree) == 0 {
		return p, 0, pcm.Errorf(pcm.Conflict, "attempt %s is beginning or ending: try again", k)
	}
	return p, tree[0], nil
}

// halted tells whether the attempt is suspended: what enters its group stands still, too.
func (p place) halted() bool {
	for _, dir := range p.Groups {
		for _, name := range []string{"freezer.state", "cgroup.freeze"} {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if word := strings.TrimSpace(string(data)); err == nil && (word == "1" || strings.HasPrefix(word, "FR")) {
				return true
			}
		}
	}
	return false
}

// statOf reads /proc/PID/stat from the third field on.
func statOf(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

// listeners reads the inodes of the sockets that listen on the port from a table
// as /proc/net/tcp; see proc_pid_net(5).
func listeners(table string, port int) (inodes []string) {
	data, err := os.ReadFile(table)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != "0A" {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && int(n) == port {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}
