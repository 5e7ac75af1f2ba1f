package rest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest/description"
	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// A list without an end, of jobs of others, keeps nobody from his own.
func TestEndlessList(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	n := 0
	c.change = func(name string, list []map[string]any) []map[string]any {
		if name != "" {
			return list // the search stays honest
		}
		list = nil
		for range 50 {
			n++
			list = append(list, map[string]any{"id": fmt.Sprintf("x%09d", n), "name": "of others", "state": "done"})
		}
		return list
	}
	run, o := runOf(t, "echo", "mine")
	exit := within(t, r, run)
	if exit.Outcome != pcm.OutcomeOK || o.out.String() != "mine\n" {
		t.Errorf("%+v, %q, %q", exit, o.out.String(), o.all)
	}
}

// The same job twice in a list, and one that comes back from its end.
func TestContradictions(t *testing.T) {
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	tr := r.poller.follow("k", "j1", func() map[string]any { return nil })
	item := func(state string) any { return map[string]any{"id": "j1", "state": state} }
	state := func() adapters.State { seen, _ := tr.view(); return seen.native.State }
	at := time.Now().Add(time.Second)
	ctx := context.Background()
	for _, step := range []struct {
		word string
		want adapters.State
	}{
		{"queued", adapters.Pending}, {"running", adapters.Running}, {"queued", adapters.Pending}, {"dancing", adapters.Running},
		{"running", adapters.Running}, {"done", adapters.Ended}, {"running", adapters.Ended}, {"failed", adapters.Ended},
	} {
		r.b.read(ctx, tr, item(step.word), at)
		if got := state(); got != step.want {
			t.Errorf("after %s it is %s, not %s", step.word, got, step.want)
		}
	}
	if seen, _ := tr.view(); seen.word != "done" {
		t.Errorf("its end became %s", seen.word)
	}
	old := r.poller.follow("k", "j1", func() map[string]any { return nil })
	r.b.read(ctx, old, item("done"), time.Now().Add(-time.Minute))
	if seen, _ := old.view(); seen != nil {
		t.Error("a reading of before its create counts")
	}
	r.b.read(ctx, old, item("a\x1b[31m\u202e"+strings.Repeat("x", 500)), at)
	if seen, _ := old.view(); seen == nil || len(seen.word) > maxNative+4 || !pcm.Printable(seen.word) {
		t.Errorf("a word that can't be shown: %+v", seen)
	}
}

func TestLogThatChanges(t *testing.T) {
	for _, c := range []struct {
		name  string
		texts []string
		want  string
	}{
		{"grows", []string{"a\n", "a\nb\n", "a\nb\n", "a\nb\nc\n"}, "a\nb\nc\n"},
		{"shrinks", []string{"a\nb\n", "a\n", "", "a\nb\nc\n"}, "a\nb\nc\n"},
		{"keeps its end", []string{"1\n2\n3\n", "2\n3\n4\n", "4\n5\n6\n"}, "1\n2\n3\n4\n5\n6\n"},
		{"moves on", []string{"1\n2\n3\n", "7\n8\n"}, "1\n2\n3\n7\n8\n"},
	} {
		s := &stream{log: &description.Log{}}
		got := ""
		for _, text := range c.texts {
			got += s.fresh(text)
		}
		if c.name == "keeps its end" {
			// Where the overlap is not all that was taken last, it is a gap: what is there comes again.
			if !strings.HasPrefix(got, "1\n2\n3\n") || !strings.HasSuffix(got, "5\n6\n") {
				t.Errorf("%s: %q", c.name, got)
			}
			continue
		}
		if got != c.want {
			t.Errorf("%s: %q, not %q", c.name, got, c.want)
		}
	}
}

// What repeats itself may be seen again though the window has moved on: where all can be had
// in the end, nothing is taken for what follows unless it must be.
func TestConsoleThatRepeatsItself(t *testing.T) {
	flood := strings.Repeat("0123456789abcde\n", 4<<10)
	for _, whole := range []bool{true, false} {
		for _, read := range []int{10, 5000, 5008, 40 << 10} {
			s := &stream{log: &description.Log{Follow: "tail"}, whole: whole}
			s.fresh("begin\n" + flood[:read])
			got := s.fresh(flood)
			if lost := whole || read < remembered; s.gap != lost || lost && got != flood {
				t.Errorf("after %d bytes %d of %d are new, whole %v, a gap: %v", read, len(got), len(flood), whole, s.gap)
			}
		}
		s := &stream{log: &description.Log{Follow: "tail"}, whole: whole}
		s.fresh("begin\n1\n2\n" + flood + "3\n4\n")
		if got := s.fresh("2\n" + flood + "3\n4\n5\n"); got != "5\n" || s.gap {
			t.Errorf("what follows for certain is %q, a gap: %v", got, s.gap)
		}
	}
}

func tarOf(headers ...*tar.Header) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, 5
		}
		h.Mode = 0o777
		w.WriteHeader(h)
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, "12345"[:min(5, h.Size)])
		}
	}
	w.Close()
	return &buf
}

func TestHostileOutputs(t *testing.T) {
	for name, c := range map[string]struct {
		headers []*tar.Header
		code    pcm.Code
		files   []string
	}{
		"good":              {[]*tar.Header{{Name: "./a"}, {Name: "d/b"}}, "", []string{"a", "d/b"}},
		"up":                {[]*tar.Header{{Name: "../a"}}, pcm.Refused, nil},
		"deep up":           {[]*tar.Header{{Name: "d/../../a"}}, pcm.Refused, nil},
		"absolute":          {[]*tar.Header{{Name: "/tmp/pcm-out"}}, pcm.Refused, nil},
		"backslash":         {[]*tar.Header{{Name: `..\a`}}, pcm.Refused, nil},
		"through a link":    {[]*tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, {Name: "l/pcm-out"}}, "", nil},
		"through a link up": {[]*tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, {Name: "l/pcm-out"}}, "", nil},
		"a device":          {[]*tar.Header{{Name: "dev", Typeflag: tar.TypeChar}, {Name: "fifo", Typeflag: tar.TypeFifo}, {Name: "hard", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}}, "", nil},
		"a second name":     {[]*tar.Header{{Name: "a"}, {Name: "d/b", Typeflag: tar.TypeLink, Linkname: "./a"}}, "", []string{"a", "d/b"}},
		"names of others":   {[]*tar.Header{{Name: "in"}, {Name: "a", Typeflag: tar.TypeLink, Linkname: "in"}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, {Name: "b", Typeflag: tar.TypeLink, Linkname: "l"}, {Name: "c", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}}, "", nil},
		"an input":          {[]*tar.Header{{Name: "in"}, {Name: "folder/x"}, {Name: "out"}}, "", []string{"out"}},
		"twice":             {[]*tar.Header{{Name: "a"}, {Name: "a"}}, "", []string{"a"}},
		"too much":          {[]*tar.Header{{Name: "a"}, {Name: "b"}, {Name: "c"}}, pcm.TooLarge, []string{"a", "b"}},
		"no archive":        {nil, "", nil},
	} {
		work := t.TempDir()
		task := adapters.Task{OutputCap: 12, Inputs: []adapters.Mount{{Target: "in"}, {Target: "folder"}}}
		err := unpack(tarOf(c.headers...), work, task)
		if code := pcm.ErrorCode(err); code != c.code {
			t.Errorf("%s: %v", name, err)
		}
		var files []string
		filepath.Walk(work, func(p string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				rel, _ := filepath.Rel(work, p)
				files = append(files, rel)
			}
			return nil
		})
		if strings.Join(files, " ") != strings.Join(c.files, " ") {
			t.Errorf("%s: files %q, not %q", name, files, c.files)
		}
		for _, p := range []string{"/tmp/pcm-out", filepath.Join(work, "../a"), filepath.Join(work, "../../pcm-out")} {
			if _, err := os.Lstat(p); err == nil {
				t.Errorf("%s: made %s", name, p)
				os.Remove(p)
			}
		}
	}
	if err := unpack(strings.NewReader(strings.Repeat("garbage", 1000)), t.TempDir(), adapters.Task{}); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("garbage: %v", err)
	}
}

func TestMarks(t *testing.T) {
	const n = "pcm-nonce-"
	text := "banner\n+ n='" + n + "'\n" + n + "s begins\nout 1\npart" + n + "e err 1\nial\n" + n + "E tail\nlast" + n + "u 0m1.50s 0m0.5s\n" + n + "m 2048\n" + n + "x 3\nepilogue\n" + n + "x 0\n"
	for _, step := range []int{1, 2, 7, 1000} {
		for _, console := range []bool{false, true} {
			in := text
			if console {
				in = strings.ReplaceAll(in, "\n", "\r\n")
			}
			var out, errs bytes.Buffer
			m := &marks{nonce: []byte(n), stdout: &out, stderr: &errs}
			for in != "" {
				k := min(step, len(in))
				if _, err := m.Write([]byte(in[:k])); err != nil {
					t.Fatal(err)
				}
				in = in[k:]
			}
			if err := m.close(); err != nil {
				t.Fatal(err)
			}
			if out.String() != "out 1\npartial\nlast" || errs.String() != "err 1\ntail" {
				t.Errorf("by %d: stdout %q, stderr %q", step, out.String(), errs.String())
			}
			if !m.ended || m.code != 3 || m.cpu != 2*time.Second || m.peak != 2<<20 {
				t.Errorf("by %d: %+v", step, m)
			}
		}
	}
}

// Pools that make no sense are passed over; a name that the site gave stands before all.
func TestPools(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	cfg := c.settings("small.yaml")
	cfg.Name = "north"
	b, err := open(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	places, err := b.look(t.Context(), nil)
	if err != nil || len(places) != 2 || places[0].pool.ID != "north.std.4" || places[0].pool.Adapter != "north" || places[0].pool.Slots != 8 || places[0].pool.Labels["site"] != "test" {
		t.Fatalf("%v, %v", places, err)
	}
	if a := places[1].pool.Accelerator; a == nil || a.Model != "a100" || places[1].pool.Capacity.GPU != 2 {
		t.Errorf("%+v", places[1].pool)
	}
	if p := places[0].pool; p.Largest == nil || *p.Largest != places[0].each || p.Capacity != p.Largest.Times(8) || p.NoFiles {
		t.Errorf("%+v", p)
	}
	for _, body := range []string{
		`{"flavors":[{"name":"a","cpus":-1,"mib":1,"gpus":0,"count":1,"region":"x","card":""}]}`,
		`{"flavors":[{"name":"a","cpus":1,"mib":"lots","gpus":0,"count":1,"region":"x","card":""}]}`,
		`{"flavors":[{"name":"a","cpus":1,"mib":1e30,"gpus":0,"count":1,"region":"x","card":""}]}`,
		`{"flavors":[{"name":"a","cpus":1,"mib":1,"gpus":-3,"count":1,"region":"x","card":""}]}`,
		`{"flavors":[{"name":"a","cpus":1,"mib":1,"gpus":0,"count":1e300,"region":"x","card":""}]}`,
		`{"flavors":[{"name":"","cpus":1,"mib":1,"gpus":0,"count":1,"region":"x","card":""}]}`,
		`{"flavors":[null,1,"x"]}`, `{"flavors":"none"}`, `{}`, `nonsense`,
	} {
		c.Next(1, "GET /v1/flavors", machine.Fault{Status: 200, Body: body})
		if places, err := b.look(t.Context(), nil); err == nil && len(places) > 0 || err != nil && pcm.ErrorCode(err) != pcm.Unavailable {
			t.Errorf("%s: %v, %v", body, places, err)
		}
	}
}
