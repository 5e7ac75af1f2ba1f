package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// state is what lasts of a plug-in's process: for the next supervisor, and for the daemon.
type state struct {
	PID     int    `json:"pid"`
	Born    string `json:"born"` // when the process began, and since which boot: names it together with PID
	Nonce   string `json:"nonce"`
	Of      string `json:"of"` // digest of command and user: another one is another plug-in
	Socket  string `json:"socket"`
	UID     uint32 `json:"uid"`
	Trouble string `json:"trouble,omitempty"` // why it can't be used now
	Facts   facts  `json:"facts"`
}

// facts are what it said of itself.
type facts struct {
	About    string   `json:"about,omitempty"`
	Roles    []string `json:"roles,omitempty"`
	LogsMS   uint32   `json:"logs_ms,omitempty"`
	MaxBatch int      `json:"max_batch,omitempty"`
}

func loadState(name string) (state, error) {
	var s state
	data, err := os.ReadFile(name)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// store writes a file that others may read at the same time.
func store(name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		if err = os.WriteFile(name+".new", data, 0o600); err == nil {
			err = os.Rename(name+".new", name)
		}
	}
	return err
}

func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// born names the process together with its number; "" if there is none, or a dead one.
func born(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(data, ')')
	if err != nil || i < 0 {
		return ""
	}
	fields := strings.Fields(string(data[i+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it the time since boot must do
	return fields[19] + " " + strings.TrimSpace(string(boot))
}

// process is a plug-in's process, started by this supervisor or by one before it.
type process struct {
	state
	cmd  *exec.Cmd // nil: adopted
	done chan struct{}
	stop context.CancelFunc

	mu  sync.Mutex
	how string // it ended; set before done is closed
}

// launch starts the plug-in in a session of its own, so that neither a signal to
// our terminal nor our end reaches it.
func launch(cfg Config, f folders, of, nonce string) (*process, error) {
	if err := f.make(); err != nil {
		return nil, err
	}
	if err := os.Remove(f.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, pcm.Errorf(pcm.Unavailable, "can't remove the old socket of plug-in %s: %w", cfg.Name, err)
	}
	log, err := os.OpenFile(f.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't open the log of plug-in %s: %w", cfg.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(cfg.Command[0], cfg.Command[1:]...)
	cmd.Dir, cmd.Stderr = f.lasting(), log
	cmd.Env = []string{
		"PATH=" + searchPath, "HOME=" + f.lasting(), "LANG=C.UTF-8",
		"PCM_PLUGIN_SOCKET=" + f.socket(), "PCM_PLUGIN_NONCE=" + nonce, "PCM_PLUGIN_STATE=" + f.lasting(),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if f.apart {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: f.number.uid, Gid: f.number.gid, Groups: f.number.groups}
	}
	if err := cmd.Start(); err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't start plug-in %s: %w", cfg.Name, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{}), stop: func() {}}
	p.state = state{PID: cmd.Process.Pid, Born: born(cmd.Process.Pid), Nonce: nonce, Of: of, Socket: f.socket(), UID: f.number.uid}
	go func() {
		err := cmd.Wait()
		words := "it ended by itself"
		if err != nil {
			words = "it ended: " + err.Error()
		}
		if last := lastLine(f.logFile()); last != "" {
			words += ": " + last
		}
		p.end(words)
	}()
	return p, nil
}

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// adopt takes up the process that an earlier supervisor started, if it lives.
func adopt(s state) *process {
	if s.PID <= 1 || s.Born == "" || born(s.PID) != s.Born {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{state: s, done: make(chan struct{}), stop: cancel}
	go func() {
		tick := time.NewTicker(aliveEvery)
		defer tick.Stop()
		for born(s.PID) == s.Born {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		p.end("it ended")
	}()
	return p
}

// aliveEvery is how often an adopted process is looked at, whose end nobody tells us of.
const aliveEvery = 250 * time.Millisecond

func (p *process) end(how string) {
	p.mu.Lock()
	p.how = how
	p.mu.Unlock()
	close(p.done)
}

func (p *process) ended() string { p.mu.Lock(); defer p.mu.Unlock(); return p.how }

// signal reaches the process that we mean, and no other that has its number since.
func (p *process) signal(sig syscall.Signal) {
	handle, err := os.FindProcess(p.PID) // holds on to the process from here
	if err != nil {
		return
	}
	defer handle.Release()
	if p.Born != "" && born(p.PID) == p.Born {
		handle.Signal(sig) // it may end at this moment
	}
}

// terminate ends it: gracefully, then by force. It returns when it is gone, or can't be ended.
func (p *process) terminate(grace time.Duration) {
	if grace > 0 {
		p.signal(syscall.SIGTERM)
		select {
		case <-p.done:
			return
		case <-time.After(grace):
		}
	}
	p.signal(syscall.SIGKILL)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second): // it hangs in the kernel
	}
	p.stop()
}

// listening waits until something answers at the socket, and checks whose it is.
func (p *process) listening(ctx context.Context, limit time.Duration) error {
	end := time.NewTimer(limit)
	defer end.Stop()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		c, err := net.DialTimeout("unix", p.Socket, time.Second)
		if err == nil {
			_, err = peerOf(c, p.UID)
			c.Close()
			return err
		}
		select {
		case <-time.After(wait):
		case <-p.done:
			return pcm.Errorf(pcm.Unavailable, "%s", p.ended())
		case <-end.C:
			return pcm.Errorf(pcm.Unavailable, "it did not listen on PCM_PLUGIN_SOCKET within %s", limit)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const (
	maxLog    = 1 << 20
	boundLogs = 200 * time.Millisecond
)

// watchLog keeps the log short, whatever state the plug-in is in, until it is told to end.
func (h *host) watchLog() (end func()) {
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(boundLogs)
		defer tick.Stop()
		for {
			boundLog(h.folders.logFile())
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-over }
}

// boundLog cuts the log when it is too long; the part before is kept once.
func boundLog(name string) {
	info, err := os.Stat(name)
	if err != nil || info.Size() <= maxLog {
		return
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	old := make([]byte, maxLog)
	n, _ := f.ReadAt(old, info.Size()-maxLog)
	os.WriteFile(name+".1", old[:n], 0o600) // a lost copy of old lines is no reason to stop
	f.Truncate(0)
}

// lastLine is the end of a log.
func lastLine(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	tail := make([]byte, min(info.Size(), 1024))
	n, _ := f.ReadAt(tail, info.Size()-int64(len(tail)))
	lines := bytes.Split(bytes.TrimSpace(tail[:n]), []byte("\n"))
	return pcm.Clean(string(lines[len(lines)-1]), 200)
}

// stageOf is the folder of an attempt whose plug-in can't reach the supervisor's.
func (f folders) stageOf(key string) string { return filepath.Join(f.stages(), key) }

func numbered(i int) string { return strconv.Itoa(i) }
