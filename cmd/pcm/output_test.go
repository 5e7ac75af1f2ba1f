package main

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

type entry struct {
	name, link, body string
	kind             byte
	mode             int64
}

func archive(t *testing.T, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestUntar(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	files, size, err := untar(archive(t,
		entry{name: "out/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "out/a/b.txt", kind: tar.TypeReg, mode: 0o4644, body: "hello"},
		entry{name: "out/run", kind: tar.TypeReg, mode: 0o755, body: "#!"},
		entry{name: "out/empty", kind: tar.TypeReg, mode: 0o644},
		entry{name: "out/link", kind: tar.TypeSymlink, link: "a/b.txt"},
	), dir)
	if err != nil || files != 3 || size != 7 {
		t.Fatalf("%d files, %d bytes, %v", files, size, err)
	}
	for name, want := range map[string]string{"out/a/b.txt": "hello", "out/link": "hello", "out/empty": ""} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	for name, want := range map[string]fs.FileMode{"out/a/b.txt": 0o644, "out/run": 0o755} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, want %v, %v", name, info.Mode(), want, err)
		}
	}
}

// Whatever another peer packs, nothing outside the folder is touched.
func TestUntarStaysInside(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries []entry
	}{
		{"parent", []entry{{name: "../escaped", kind: tar.TypeReg, body: "x"}}},
		{"parent deep down", []entry{{name: "a/../../escaped", kind: tar.TypeReg, body: "x"}}},
		{"absolute", []entry{{name: "/tmp/../escaped", kind: tar.TypeReg, body: "x"}}},
		{"link to the parent", []entry{{name: "l", kind: tar.TypeSymlink, link: ".."}}},
		{"absolute link", []entry{{name: "l", kind: tar.TypeSymlink, link: "/etc"}}},
		{"link out, deep down", []entry{{name: "a/b/l", kind: tar.TypeSymlink, link: "../../../escaped"}}},
		{"through a link that was there", []entry{{name: "old/escaped", kind: tar.TypeReg, body: "x"}}},
		{"hard link", []entry{{name: "h", kind: tar.TypeLink, link: "../secret"}}},
		{"device", []entry{{name: "d", kind: tar.TypeChar}}},
		{"pipe", []entry{{name: "p", kind: tar.TypeFifo}}},
		{"nameless", []entry{{name: "", kind: tar.TypeReg, body: "x"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outside := t.TempDir()
			dir := filepath.Join(outside, "results")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("..", filepath.Join(dir, "old")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := untar(archive(t, tt.entries...), dir); err == nil {
				t.Error("it was unpacked")
			} else if pcm.ErrorCode(err) == "" {
				t.Errorf("%v", err)
			}
			left, err := os.ReadDir(outside)
			if err != nil || len(left) != 1 {
				t.Errorf("outside now: %v %v", left, err)
			}
		})
	}
	// A link that was there is replaced, not written through.
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	dir := filepath.Join(outside, "results")
	if err := os.WriteFile(secret, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "stdout")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := untar(archive(t, entry{name: "stdout", kind: tar.TypeReg, body: "new"}), dir); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(secret); string(got) != "keep" {
		t.Errorf("%q %v", got, err)
	}
}

func TestUntarCutShort(t *testing.T) {
	whole := archive(t, entry{name: "a", kind: tar.TypeReg, body: strings.Repeat("x", 5000)}).Bytes()
	if _, _, err := untar(bytes.NewReader(whole[:2000]), t.TempDir()); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("%v", err)
	}
	if _, _, err := untar(strings.NewReader(strings.Repeat("no archive ", 100)), t.TempDir()); err == nil || !strings.Contains(err.Error(), "cut short or damaged") {
		t.Errorf("%v", err)
	}
}

func TestLineWriter(t *testing.T) {
	var out bytes.Buffer
	w := &lineWriter{w: &out, screen: &sync.Mutex{}, prefix: "[1] "}
	for _, piece := range []string{"on", "e\ntwo\n\nth", "ree"} {
		if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := out.String(); got != "[1] one\n[1] two\n[1] \n" {
		t.Errorf("%q", got)
	}
	w.flush()
	w.flush()
	if got := out.String(); !strings.HasSuffix(got, "[1] three\n") || strings.Count(got, "three") != 1 {
		t.Errorf("%q", got)
	}
	// A line without end is passed on in pieces, losing nothing.
	out.Reset()
	if _, err := w.Write([]byte(strings.Repeat("y", 3*maxLine/2))); err != nil {
		t.Fatal(err)
	}
	if len(w.rest) >= maxLine {
		t.Errorf("%d bytes are kept back", len(w.rest))
	}
	w.flush()
	if n := strings.Count(out.String(), "y"); n != 3*maxLine/2 {
		t.Errorf("%d of %d bytes arrived", n, 3*maxLine/2)
	}
}

func TestHumanDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", 119 * time.Second: "119s", 120 * time.Second: "2m", 192 * time.Second: "3m12s", 130 * time.Second: "2m10s",
		2 * time.Hour: "120m", 5*time.Hour + 2*time.Minute: "5h2m", 10 * time.Hour: "10h", 13 * 24 * time.Hour: "13d",
	} {
		if got := humanDuration(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

// What another peer wrote can't move the cursor or forge a column.
func TestPlain(t *testing.T) {
	tb := &table{now: time.Now()}
	tb.row("a\x1b[2Jb", "c\td\ne", "\u202eright")
	if got := tb.String(); strings.ContainsAny(got, "\x1b\t\u202e") || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
}

// A job that waits tells each reason once, and once how to end the wait.
func TestTellWaiting(t *testing.T) {
	var errOut bytes.Buffer
	a := &app{errOut: &errOut, format: "table"}
	told := ""
	for _, why := range []string{"", "no pool of adapter slurm", "no pool of adapter slurm", "", "all are\nfull"} {
		told = a.tellWaiting(api.Job{ID: "job-aaaaaaaaaaaaaaaa", State: pcm.JobOpen, Waiting: why}, told)
	}
	a.tellWaiting(api.Job{ID: "job-aaaaaaaaaaaaaaaa", State: pcm.JobDone, Waiting: "not any more"}, told)
	want := "pcm: job-aaaaaaaa waits: no pool of adapter slurm\n" +
		"pcm: Ctrl-C cancels; a deadline ('pcm run --deadline', or deadline in the spec) limits the wait\n" +
		"pcm: job-aaaaaaaa waits: all are full\n"
	if got := errOut.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLockData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	unlock, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if _, err := lockData(dir); pcm.ErrorCode(err) != pcm.Conflict || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("%v", err)
	}
	unlock()
	unlock, err = lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lockData(file); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), "--data") {
		t.Errorf("%v", err)
	}
}

// A copy writes what was asked for under the name that was asked for, and
// nothing else of the folder that it goes to, whatever the other side sends.
func TestCopyWritesWhatWasAsked(t *testing.T) {
	file := func(name string) entry { return entry{name: name, kind: tar.TypeReg, mode: 0o644, body: "new"} }
	link := func(name, to string) entry { return entry{name: name, kind: tar.TypeSymlink, link: to} }
	for _, tt := range []struct {
		name, from, to string
		entries        []entry
		made           string // "": it is refused
	}{
		{"a file", "log.txt", "log.txt", []entry{file("log.txt")}, "log.txt"},
		{"renamed", "log.txt", "mine", []entry{file("log.txt")}, "mine"},
		{"a folder", "d", "copy", []entry{{name: "d/", kind: tar.TypeDir}, file("d/.hidden"), link("d/l", "../copy")}, "copy/.hidden"},
		{"the whole working folder", ".", "copy", []entry{{name: "./", kind: tar.TypeDir}, file("./.hidden")}, "copy/.hidden"},
		{"into a folder", ".", ".", []entry{file(".hidden")}, ".hidden"},
		{"something else", "log.txt", "log.txt", []entry{file("log.txt"), file(".keep")}, ""},
		{"a name that begins alike", "log", "log", []entry{file("log.txt")}, ""},
		{"back out", "d", "d", []entry{file("d/../.keep")}, ""},
		{"back out of the renamed", ".", "copy", []entry{file("../.keep")}, ""},
		{"through a link", "d", "d", []entry{link("d", "old"), file("d/.keep")}, ""},
		{"through a link, deep down", "d", "d", []entry{link("d/l", "../old"), file("d/l/e/.keep")}, ""},
	} {
		dir := t.TempDir()
		for _, kept := range []string{".keep", "old/.keep", "log.txt"} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, kept)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, kept), []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := untar(asked(archive(t, tt.entries...), tt.from, tt.to), dir)
		if (err == nil) != (tt.made != "") || err != nil && pcm.ErrorCode(err) != pcm.Refused {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.made != "" {
			if got, err := os.ReadFile(filepath.Join(dir, tt.made)); string(got) != "new" {
				t.Errorf("%s: %q, %v", tt.name, got, err)
			}
		}
		for _, kept := range []string{".keep", "old/.keep"} {
			if got, err := os.ReadFile(filepath.Join(dir, kept)); string(got) != "old" {
				t.Errorf("%s: %s holds %q, %v", tt.name, kept, got, err)
			}
		}
	}
}

// TestDrawCost: what is to be paid later is not called paid.
func TestDrawCost(t *testing.T) {
	at := time.Date(2026, 12, 1, 12, 47, 50, 0, time.UTC)
	for _, c := range []struct {
		name       string
		job        api.Job
		cost, done string
	}{
		{"at once", api.Job{Settled: true}, "0.5 paid, 0 held, in credit; settled", "done: 2 tasks, paid 0.5 credit"},
		{"not yet", api.Job{Budget: "5"}, "0.5 paid, 0 held, in credit, budget 5; not yet settled", "done: 2 tasks, paid 0.5 credit"},
		{"later", api.Job{Budget: "5", PayAt: at}, "0.5 credit, budget 5; what of it isn't paid yet is paid after 2026-12-01 12:47:50 UTC", "done: 2 tasks, to be paid after 2026-12-01 12:47:50 UTC: 0.5 credit"},
		{"later, and was", api.Job{Settled: true, PayAt: at}, "0.5 paid, 0 held, in credit; settled", "done: 2 tasks, paid 0.5 credit"},
	} {
		c.job.Paid, c.job.Held, c.job.Unit, c.job.Counts.Done = "0.5", "0", "credit", 2
		if got := drawCost(c.job); !strings.HasPrefix(got, c.cost) {
			t.Errorf("%s: it cost %q, want %q", c.name, got, c.cost)
		}
		if got := drawDone(c.job); !strings.HasSuffix(got, c.done) {
			t.Errorf("%s: it is %q, want %q", c.name, got, c.done)
		}
	}
}
