package adaptertest

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func testMemory(b *bench) {
	task := b.task("alloc", "400", "out", "fits")
	task.Resources.Memory = 128 << 20
	if st := b.run(task); st.Outcome != pcm.OutcomeMemory {
		b.expect(st, pcm.OutcomeFailed, -1)
	}
	task = b.task("alloc", "400", "out", "fits")
	task.Resources.Memory = b.s.Enough
	b.expect(b.run(task), pcm.OutcomeOK, 0)
}

func testOutOfMemory(b *bench) {
	task := b.task("alloc", "400", "out", "fits")
	task.Resources.Memory = 128 << 20
	st := b.run(task)
	b.expect(st, pcm.OutcomeMemory, -1)
	if st.ExitCode == 0 {
		b.t.Error("it was ended, and has exit code 0")
	}
}

// A task that gets too little memory to begin with is refused or ends for want
// of it; others start as before, however often that was tried.
func testTooLittleMemory(b *bench) {
	t := b.t
	for _, memory := range []pcm.Bytes{512, pcm.MinMemory} {
		for range b.s.Many / 3 {
			task := b.task("alloc", "400")
			task.Resources.Memory = memory
			err := b.ins.Adapter.Start(b.ctx, task)
			if code := pcm.ErrorCode(err); code == pcm.Invalid || code == pcm.Refused {
				continue
			}
			if err != nil {
				t.Fatalf("memory %s: %v", memory, err)
			}
			if st := b.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeMemory && st.Outcome != pcm.OutcomeFailed {
				t.Errorf("memory %s: ended as %s, %q", memory, st.Outcome, st.Reason)
			}
		}
	}
	for range b.s.Many / 3 {
		b.expect(b.run(b.task("out", "fits")), pcm.OutcomeOK, 0)
	}
}

func testOutputCap(b *bench) {
	t := b.t
	task := b.task("flood", "100000000", "sleep", "5m")
	task.OutputCap = 50000
	st := b.run(task)
	b.expect(st, pcm.OutcomeOutput, -1)
	if got := b.logs(st.Key, adapters.Stdout, 0, false); len(got) != 50000 {
		t.Errorf("%d bytes were kept of 50000", len(got))
	}
	task = b.task("flood", "30000", "write", "big", strings.Repeat("x", 20000))
	task.OutputCap, task.Outputs = 49000, []string{"big"}
	b.expect(b.run(task), pcm.OutcomeOutput, -1)
	task = b.task("flood", "30000", "write", "big", strings.Repeat("x", 20000))
	task.OutputCap, task.Outputs = 50100, []string{"big"}
	b.expect(b.run(task), pcm.OutcomeOK, 0)
}

func testUseCPU(b *bench) {
	st := b.run(b.task("burn", "300ms"))
	b.expect(st, pcm.OutcomeOK, 0)
	if st.Usage.CPUMS < 250 || st.Usage.CPUMS > 5000 {
		b.t.Errorf("it used 300 ms of CPU time, counted were %d ms", st.Usage.CPUMS)
	}
	if st.Usage.WallMS < 250 {
		b.t.Errorf("it used 300 ms of CPU time, and ran for %s", st.Usage.Wall())
	}
}

func testUseMemory(b *bench) {
	// Some back ends look from time to time only.
	st := b.run(b.task("alloc", "200", "hold", b.times(1)))
	b.expect(st, pcm.OutcomeOK, 0)
	if m := st.Usage.MaxMemory; m < 200<<20 || m > 2<<30 {
		b.t.Errorf("it used 200 MiB, counted were %s", m)
	}
}

func testGPU(b *bench) {
	b.needs(b.s.GPU != nil, "the subject's tasks can't ask for accelerators")
	pools, err := b.ins.Adapter.Pools(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	var all int64
	for _, p := range pools {
		all += p.Capacity.GPU
	}
	if all == 0 {
		b.t.Errorf("no pool offers accelerators: %+v", pools)
	}
	task := b.task("sleep", b.times(1))
	b.s.GPU(b.t, &task)
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	if want := task.Resources.GPU * st.Usage.WallMS; want == 0 || st.Usage.GPUMS != want {
		b.t.Errorf("%d accelerators for %s, counted were %d ms", task.Resources.GPU, st.Usage.Wall(), st.Usage.GPUMS)
	}
}

// hello listens on this machine, and greets whoever comes. It gives the
// addresses by which others may reach it.
func hello(t *testing.T) (addresses []string) {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "hello")
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	addresses = []string{net.JoinHostPort("127.0.0.1", port)}
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() && ip.IP.To4() != nil && len(addresses) < 8 {
			addresses = append(addresses, net.JoinHostPort(ip.IP.String(), port))
		}
	}
	return addresses
}

func testNoNetwork(b *bench) {
	all := hello(b.t)
	var steps []string
	for _, a := range all {
		steps = append(steps, "try", "dial", a)
	}
	st := b.run(b.task(steps...))
	b.expect(st, pcm.OutcomeOK, 0)
	if out := b.logs(st.Key, adapters.Stdout, 0, false); strings.Count(out, "refused: ") != len(all) {
		b.t.Errorf("of %v it reached some:\n%s", all, out)
	}
}

func testNetwork(b *bench) {
	b.needs(b.offers(pcm.FeatureNetwork), "not every pool has the feature "+string(pcm.FeatureNetwork))
	all := hello(b.t)
	var steps []string
	for _, a := range all {
		steps = append(steps, "try", "dial", a)
	}
	task := b.task(steps...)
	task.Network = true
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	if out := b.logs(st.Key, adapters.Stdout, 0, false); !strings.Contains(out, "hello\n") {
		b.t.Errorf("of %v it reached none:\n%s", all, out)
	}
}

func testImage(b *bench) {
	b.needs(b.offers(pcm.FeatureImage), "not every pool has the feature "+string(pcm.FeatureImage))
	b.needs(b.s.Image != "", "the subject names no image")
	task := b.task("cat", "/image.txt")
	task.Image = b.s.Image
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	if out := b.logs(st.Key, adapters.Stdout, 0, false); out != "of the image\n" {
		b.t.Errorf("in its image it read %q", out)
	}
	task = b.task("out", "x")
	task.Image = b.s.Image + ":absent"
	err := b.ins.Adapter.Start(b.ctx, task)
	if err != nil {
		if code := pcm.ErrorCode(err); code != pcm.Invalid && code != pcm.Refused || !strings.Contains(err.Error(), "absent") {
			b.t.Errorf("an image that isn't there: %v", err)
		}
		return
	}
	began := time.Now()
	st = b.wait(task.Key, adapters.Ended)
	if st.Outcome != pcm.OutcomeFailed && st.Outcome != pcm.OutcomeSeller || !strings.Contains(st.Reason, "absent") || !st.Started.IsZero() {
		b.t.Errorf("an image that isn't there: ended after %s as %+v", time.Since(began), st)
	}
}
