package slurm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// spool is the shared folder: what login and compute nodes tell each other.
//
//	owner            tells our jobs from those of other nodes of the same user
//	spool/           evidence: see wrapper
//	attempts/KEY/    script, streams, and with a shared folder of its own the working folder
//	arrays/NAME/N    leads to the folder of the array's N-th attempt
//	numbers/NAME     what number Slurm gave the array
type spool string

func (s spool) attempts() string             { return filepath.Join(string(s), "attempts") }
func (s spool) attempt(key string) string    { return filepath.Join(string(s), "attempts", key) }
func (s spool) array(name string) string     { return filepath.Join(string(s), "arrays", name) }
func (s spool) number(array string) string   { return filepath.Join(string(s), "numbers", array) }
func (s spool) events() string               { return filepath.Join(string(s), "spool") }
func (s spool) intent(key string) string     { return filepath.Join(s.attempt(key), "batch.json") }
func (s spool) file(key, name string) string { return filepath.Join(s.attempt(key), name) }
func (s spool) script(key string, gen int) string {
	return filepath.Join(s.attempt(key), "run."+strconv.Itoa(gen))
}
func (s spool) evidence(key string, gen int, what string) string {
	return filepath.Join(s.events(), key+"."+strconv.Itoa(gen)+"."+what)
}

// open makes the folders.
func (s spool) open() error {
	for _, dir := range []string{s.attempts(), s.array(""), s.number(""), s.events()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return pcm.Errorf(pcm.Unavailable, "slurm: can't make the shared folder: %w", err)
		}
	}
	return nil
}

// owner reads, or makes, what our jobs' comments say.
func (s spool) owner() (string, error) {
	name := filepath.Join(string(s), "owner")
	for range 2 {
		data, err := os.ReadFile(name)
		if id := strings.TrimSpace(string(data)); err == nil && len(id) == 16 {
			return "pcm " + id, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", pcm.Errorf(pcm.Unavailable, "slurm: can't read the shared folder: %w", err)
		}
		var raw [8]byte
		rand.Read(raw[:])
		if err := os.MkdirAll(string(s), 0o700); err != nil {
			return "", pcm.Errorf(pcm.Unavailable, "slurm: can't make the shared folder: %w", err)
		}
		tmp := name + "." + hex.EncodeToString(raw[:])
		err = os.WriteFile(tmp, []byte(hex.EncodeToString(raw[:])+"\n"), 0o600)
		if err == nil {
			err = os.Link(tmp, name) // the first one stays
			os.Remove(tmp)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", pcm.Errorf(pcm.Unavailable, "slurm: can't write to the shared folder: %w", err)
		}
	}
	return "", pcm.Errorf(pcm.Unavailable, "slurm: %s is damaged: remove it when no task of this node is in Slurm's queue", name)
}

// claim makes the start file in the place of the job: true means that the
// attempt has not begun, and never will under this generation.
func (s spool) claim(key string, gen int) (bool, error) {
	// Whole or not at all: half a start file would be taken for a job's.
	name := s.evidence(key, gen, "start")
	tmp := s.evidence(key, gen, "claim") // there: not all file systems link across folders
	if err := replaceFile(tmp, []byte("job=none\n")); err != nil {
		return false, err
	}
	defer os.Remove(tmp)
	err := os.Link(tmp, name)
	if errors.Is(err, fs.ErrExist) {
		data, err := readSmall(name)
		return err == nil && strings.HasPrefix(data, "job=none\n"), nil
	}
	return err == nil, err
}

// begun is a start file, or a refusal.
type begun struct {
	Job      string // as jobRef prints it; "none" when we made the file ourselves
	Host     string
	Restarts int
}

// over is an exit file.
type over struct {
	Code    int
	Fault   string
	Peak    pcm.Bytes
	OOM     bool
	Missing bool
	Grouped bool // memory was bounded by Slurm's own group
	CPUMS   int64
}

// readBegun reads one. Half of it is none: the node that makes it has yet to write
// it, or could not, and then runs nothing.
func (s spool) readBegun(key string, gen int, what string) (begun, bool) {
	data, err := readSmall(s.evidence(key, gen, what))
	if err != nil {
		return begun{}, false
	}
	f := lines(data)
	if _, whole := f["restarts"]; f["job"] != "none" && !whole || !strings.HasSuffix(data, "\n") {
		return begun{}, false
	}
	b := begun{Job: f["job"], Host: f["host"]}
	b.Restarts, _ = strconv.Atoi(f["restarts"])
	return b, true
}

// lasted is the time between begin and end, both by the clock of the shared folder.
func (s spool) lasted(key string, gen int) time.Duration {
	start, err := os.Stat(s.evidence(key, gen, "start"))
	if err != nil {
		return 0
	}
	exit, err := os.Stat(s.evidence(key, gen, "exit"))
	if err != nil {
		return 0
	}
	return max(0, exit.ModTime().Sub(start.ModTime()))
}

func (s spool) readOver(key string, gen int) (over, bool) {
	data, err := readSmall(s.evidence(key, gen, "exit"))
	if err != nil {
		return over{}, false
	}
	if !strings.HasSuffix(data, "\nend\n") { // half of it, as yet or for want of space
		return over{}, false
	}
	f := lines(data)
	code, err := strconv.Atoi(f["code"])
	if err != nil {
		return over{}, false
	}
	kib, _ := strconv.ParseInt(f["peak"], 10, 50)
	o := over{Code: code & 0xff, Fault: f["fault"], Peak: pcm.Bytes(max(kib, 0)) << 10, Missing: f["missing"] == "1", Grouped: f["group"] != ""}
	n, _ := strconv.Atoi(f["oom"])
	o.OOM = n > 0
	// What 'times' prints: the shell's own, then its children's: "0m0.01s 0m0.00s".
	var spent []string
	for line := range strings.Lines(data) {
		if w := strings.Fields(line); len(w) == 2 && strings.HasSuffix(w[0], "s") && strings.Contains(w[0], "m") {
			spent = w
		}
	}
	for _, w := range spent {
		minutes, rest, _ := strings.Cut(strings.TrimSuffix(w, "s"), "m")
		m, err1 := strconv.ParseInt(minutes, 10, 40)
		sec, err2 := strconv.ParseFloat(strings.Replace(rest, ",", ".", 1), 64)
		if err1 == nil && err2 == nil && m >= 0 && sec >= 0 && sec < 61 {
			o.CPUMS += m*60_000 + int64(sec*1000)
		}
	}
	return o, true
}

// readSmall reads a file that a task may have written to: never much of it.
func readSmall(name string) (string, error) {
	f, err := openShared(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n := 0
	for n < len(buf) {
		k, err := f.Read(buf[n:])
		if n += k; err != nil {
			break
		}
	}
	return string(buf[:n]), nil
}

// openShared opens a file that a task may have put another in the place of: a link
// to a file of this host, or a pipe, at which one would wait.
func openShared(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no file", filepath.Base(name))
	}
	return f, nil
}

// openWork opens an attempt's working folder below top, which the task can't turn
// into a way out: a link in its place is not followed out of top.
func openWork(top, name string) (*os.Root, error) {
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenRoot(name)
}

func lines(data string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(data) {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			m[k] = v
		}
	}
	return m
}

// intent is where an attempt is to be found at Slurm; written before it is submitted.
type intent struct {
	Name       string `json:"name"`
	Index      int    `json:"index"` // in the array; -1: none
	Generation int    `json:"generation"`
	ID         int64  `json:"id,omitempty"` // 0: not known to have been submitted
}

func (in intent) ref() jobRef { return jobRef{in.ID, in.Index, in.Name} }

func (s spool) saveIntent(key string, in intent) error {
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return replaceFile(s.intent(key), data)
}

// saveNumber notes what number Slurm gave: once for all of an array.
func (s spool) saveNumber(key string, in intent) error {
	if in.Index < 0 {
		return s.saveIntent(key, in)
	}
	return replaceFile(s.number(in.Name), []byte(strconv.FormatInt(in.ID, 10)+"\n"))
}

func (s spool) loadIntent(key string) (in intent, ok bool) {
	data, err := readSmall(s.intent(key))
	if err != nil || json.Unmarshal([]byte(data), &in) != nil || in.Name == "" || in.Generation < 1 {
		return intent{}, false
	}
	if in.ID == 0 && in.Index >= 0 && filepath.IsLocal(in.Name) {
		if text, err := readSmall(s.number(in.Name)); err == nil {
			in.ID, _ = strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		}
	}
	return in, true
}

// replaceFile writes a file that is whole or not there. It follows no link that a
// task has put in its way.
func replaceFile(name string, data []byte) error {
	tmp := name + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// forget deletes all of an attempt, when its end is on record elsewhere.
func (s spool) forget(key string, generations int) {
	in, ok := s.loadIntent(key)
	os.RemoveAll(s.attempt(key)) // first: without its script nothing of it can begin any more
	for gen := 1; gen <= generations; gen++ {
		for _, what := range []string{"exit", "refused", "claim", "start"} {
			os.Remove(s.evidence(key, gen, what))
		}
	}
	if ok && in.Index >= 0 && filepath.IsLocal(in.Name) {
		os.Remove(filepath.Join(s.array(in.Name), strconv.Itoa(in.Index)))
		s.forgetArray(in.Name)
	}
}

// forgetArray deletes what was kept of an array, with its last one.
func (s spool) forgetArray(name string) {
	if err := os.Remove(s.array(name)); err == nil || errors.Is(err, fs.ErrNotExist) {
		os.Remove(s.number(name))
	}
}

// leftovers are the keys that have a folder.
func (s spool) leftovers(ctx context.Context) []string {
	entries, err := os.ReadDir(s.attempts())
	if err != nil || ctx.Err() != nil {
		return nil
	}
	var keys []string
	for _, e := range entries {
		keys = append(keys, e.Name())
	}
	return keys
}

// tidyArrays removes what leads to folders that are no more.
func (s spool) tidyArrays() {
	names, _ := fs.Glob(os.DirFS(string(s)), "arrays/*/*") // the pattern is good
	for _, name := range names {
		name = filepath.Join(string(s), name)
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			os.Remove(name)
			s.forgetArray(filepath.Base(filepath.Dir(name)))
		}
	}
}
