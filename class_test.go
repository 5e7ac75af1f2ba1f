package pcm_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
)

// TestClassFiles: every file of configs/classes is embedded, every template has a
// shape and a demand that can be read, and the four oldest keep their shapes.
func TestClassFiles(t *testing.T) {
	files, err := filepath.Glob("configs/classes/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	text := ""
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text += string(raw)
	}
	if got, want := len(pcm.Classes())+len(pcm.KnownAccelerators()), strings.Count(text, "- {name: ")+strings.Count(text, "  - name: "); got != want {
		t.Errorf("%d classes and accelerators are known, the files have %d: is a file not read?", got, want)
	}
	families := map[string]int{}
	for _, c := range pcm.Classes() {
		family, _, _ := strings.Cut(c.Name, ".")
		families[family]++
		step := pcm.Step{Class: c.Name}
		shape, err := step.Shape()
		if err != nil || shape != c.Resources || shape.CPU == 0 || shape.Memory == 0 {
			t.Errorf("%s is %s, %v", c.Name, shape, err)
		}
		d, err := step.Demand("")
		if err != nil || (d.Accelerator != nil) != (shape.GPU > 0) {
			t.Errorf("%s demands %+v of a task of %s, %v", c.Name, d, shape, err)
		}
		if none, err := step.Demand(c.Name); err != nil || !reflect.DeepEqual(none, pcm.Demand{}) {
			t.Errorf("%s demands %+v of a pool of its own class, %v", c.Name, none, err)
		}
		if c.About == "" || c.Own {
			t.Errorf("%s: about %q, own %v", c.Name, c.About, c.Own)
		}
	}
	for _, f := range []string{"cpu", "mem", "disk", "gpu", "npu", "mlu", "dcu", "hpc", "ai"} {
		if families[f] == 0 {
			t.Errorf("no class is of family %s", f)
		}
	}
	for name, want := range map[string]pcm.Resources{
		"cpu.nano": {CPU: 100, Memory: 64 << 20}, "cpu.small": {CPU: 500, Memory: 256 << 20},
		"cpu.medium": {CPU: 1000, Memory: 1 << 30}, "cpu.large": {CPU: 4000, Memory: 8 << 30},
	} {
		if c, ok := pcm.FindClass(name); !ok || c.Resources != want {
			t.Errorf("%s is %s, was always %s", name, c.Resources, want)
		}
	}
	pci := map[string]string{}
	for _, k := range pcm.KnownAccelerators() {
		if err := k.Validate(); err != nil {
			t.Error(err)
		}
		for _, id := range k.PCI {
			if pci[id] != "" {
				t.Errorf("PCI %s is %s and %s", id, pci[id], k.Name)
			}
			pci[id] = k.Name
		}
		ask, err := pcm.ParseAccelerator(k.Name)
		if err != nil || ask.Misses(&k.Accelerator) != "" {
			t.Errorf("who asks for %s gets %q, %v", k.Name, ask.Misses(&k.Accelerator), err)
		}
		for p := range k.TOPS {
			if !slices.Contains(pcm.Precisions, p) {
				t.Errorf("%s has precision %s", k.Name, p)
			}
		}
	}
}

// TestKnownSpeeds: what the files say of speeds is plausible. Narrower numbers are
// never slower, matrix units aside, and a stated speed is within what one device of
// this decade does.
func TestKnownSpeeds(t *testing.T) {
	// Each is at least as fast as those before it, where it is stated.
	orders := [][]pcm.Precision{{"fp64", "fp32", "tf32", "bf16", "int8"}, {"fp32", "tf32", "fp16", "fp8"}, {"bf16", "fp16", "int8"}, {"fp16", "fp8"}}
	stated := 0
	for _, k := range pcm.KnownAccelerators() {
		for _, order := range orders {
			before := pcm.Precision("")
			for _, p := range order {
				rate, ok := k.TOPS[p]
				if !ok {
					continue
				}
				if before != "" && rate < k.TOPS[before] {
					t.Errorf("%s does %s at %s and %s at %s", k.Name, k.TOPS[before], before, rate, p)
				}
				before = p
			}
		}
		for p, rate := range k.TOPS {
			stated++
			if rate < 1000 || rate > 20_000_000 {
				t.Errorf("%s at %s: %s TOPS", k.Name, p, rate)
			}
		}
		if half, eighth := k.TOPS["fp16"], k.TOPS["int8"]; half > 0 && eighth > 4*half {
			t.Errorf("%s: int8 at %s is more than four times fp16 at %s", k.Name, eighth, half)
		}
		if n := k.Name; !strings.HasSuffix(n, "."+strconv.FormatInt(int64(k.Memory>>30), 10)+"g") {
			t.Errorf("%s has %s", n, k.Memory)
		}
	}
	if stated < 100 {
		t.Errorf("%d speeds are stated", stated)
	}
}

// TestParseAccelerator: what people write is understood, and what isn't is named
// with what was probably meant.
func TestParseAccelerator(t *testing.T) {
	for in, want := range map[string]string{
		"a100.80g":                          "vendor=nvidia, model=a100, memory >= 80GiB",
		"A100":                              "vendor=nvidia, model=a100",
		"fp16 >= 300 TOPS":                  "fp16 >= 300 TOPS",
		"fp16 ≥ 300 TOPS":                   "fp16 >= 300 TOPS",
		"FP64>=9.7TFLOPS":                   "fp64 >= 9.7 TOPS",
		"int8 >= 1.2 PFLOPS":                "int8 >= 1200 TOPS",
		"vendor=huawei, memory >= 32 GiB":   "vendor=huawei, memory >= 32GiB",
		"a100, memory>=40GiB, fp16 >= 100":  "vendor=nvidia, model=a100, memory >= 40GiB, fp16 >= 100 TOPS",
		"a100, slice=3g.20gb":               "vendor=nvidia, model=a100, slice=3g.20gb",
		"model=frob9000":                    "model=frob9000",
		"memory >= 1000000001B":             "memory >= 1000000001B",
		"vendor = AMD , fp32 >= 500 GFLOPS": "vendor=amd, fp32 >= 0.5 TOPS",
	} {
		ask, err := pcm.ParseAccelerator(in)
		if err != nil || ask.String() != want {
			t.Errorf("%q is %q, %v; want %q", in, ask, err, want)
			continue
		}
		if again, err := pcm.ParseAccelerator(ask.String()); err != nil || !reflect.DeepEqual(again, ask) {
			t.Errorf("%q, written and read again, is %q, %v", in, again, err)
		}
	}
	for in, want := range map[string][]string{
		"":                         {"nothing stands here"},
		"a100.80gb":                {`"a100.80gb"`, "did you mean a100.80g?"},
		"gpu.a100.40g":             {"did you mean a100.40g?"},
		"nvidia":                   {"write vendor=nvidia"},
		"zzzzzzzzzzzz":             {"pcm class list", "model=NAME"},
		"fp61 >= 300":              {`"fp61"`, "did you mean fp64?"},
		"colour = red":             {`"colour"`, "known: vendor, model, slice, memory, fp64"},
		"fp16 > 300 TOPS":          {"compared with >=", "not with >"},
		"fp16 <= 300":              {"not with <="},
		"fp16 = 300":               {"not with ="},
		"vendor >= huawei":         {"compared with ="},
		"fp16 >= lots":             {`"lots"`, "300 TOPS"},
		"fp16 >= -1":               {`"-1"`},
		"memory >= 8 gigs":         {"8 gigs"},
		"memory >=":                {"has no value"},
		"vendor=huawei,":           {"condition 2", "nothing stands here"},
		"fp16 >= 1, fp16 >= 2":     {"condition 2", "fp16 stands twice"},
		"a100, model=h100":         {"condition 2", "model stands twice"},
		"vendor=a b":               {`"a b"`},
		strings.Repeat("a", 257):   {"at most 256"},
		"a100; memory >= 80 GiB":   {"can't be asked for"},
		"memory >= 9999999999 GiB": {"not an amount"},
	} {
		ask, err := pcm.ParseAccelerator(in)
		if pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%q is %q, %v", in, ask, err)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %v: does not name %q", in, err, part)
			}
		}
	}
}

// TestSlicesAreAskedFor: who asks for a model gets a whole one; who asks for what it can do takes a slice as well.
func TestSlicesAreAskedFor(t *testing.T) {
	a100, _ := pcm.FindAccelerator("a100.40g")
	slice := a100.Sliced("3g.20gb", a100.Slices)
	for in, want := range map[string]string{
		"a100": "wants a whole a100", "a100, slice=3g.20gb": "", "a100, slice=1g.5gb": "wants slice 1g.5gb",
		"fp16 >= 100 TOPS": "", "fp16 >= 200 TOPS": "too little", "memory >= 20 GiB": "", "memory >= 21 GiB": "1GiB too little",
	} {
		ask, err := pcm.ParseAccelerator(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := ask.Misses(&slice); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: a slice %s misses %q, want %q", in, slice, got, want)
		}
	}
}

// TestSoftware: versions are compared by their numbers.
func TestSoftware(t *testing.T) {
	have := pcm.Software{"cuda": "12.4", "python": "3.12.3", "gcc": "", "mpi": "4.1rc1"}
	if err := have.Validate(); err != nil {
		t.Fatal(err)
	}
	for ask, want := range map[string]string{
		"cuda": "", "cuda>=12": "", "cuda >= 12.4": "", "cuda≥12.10": "has cuda 12.4", "cuda>=9": "", "cuda=12": "", "cuda=12.4": "", "cuda=1": "has cuda 12.4",
		"python>=3.9": "", "python>=3.12.10": "has python 3.12.3", "gcc": "", "gcc>=9": "doesn't state its version", "mpi>=4.1": "has mpi 4.1rc1", "cudda": "did you mean cuda?",
	} {
		a, err := pcm.ParseSoftware(ask)
		if err != nil {
			t.Errorf("%s: %v", ask, err)
			continue
		}
		if got := a.Misses(have); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s misses %q, want %q", ask, got, want)
		}
	}
	for _, ask := range []string{"", ">=12", "cuda>12", "cuda<=12", "cuda>=", "cuda>=twelve", "my cuda", "cuda!=12"} {
		if a, err := pcm.ParseSoftware(ask); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%q is %s, %v", ask, a, err)
		}
	}
	for _, bad := range []pcm.Software{{"My Tool": ""}, {"cuda": "new"}, {"cuda": "1\x1b[0m"}, {"cuda": "1" + strings.Repeat("0", 31)}} {
		if err := bad.Validate(); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%q is let through: %v", bad, err)
		}
	}
}

func TestParseBitRate(t *testing.T) {
	for in, want := range map[string]string{"100 Gbit/s": "100Gbit/s", "25Gbps": "25Gbit/s", "2.5 Gbit/s": "2.5Gbit/s", "500 Mbit/s": "500Mbit/s", "1.2Tbit/s": "1.2Tbit/s"} {
		if b, err := pcm.ParseBitRate(in); err != nil || b.String() != want {
			t.Errorf("%q is %s, %v", in, b, err)
		}
	}
	for _, in := range []string{"", "100", "100 GB/s", "-1 Gbit/s", "0 Gbit/s", "NaN Gbit/s", "1e30 Gbit/s"} {
		if b, err := pcm.ParseBitRate(in); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%q is %s, %v", in, b, err)
		}
	}
}

// TestAsk: the new parts of a step's resources are read, and faults name their field.
func TestAsk(t *testing.T) {
	parse := func(resources string) (pcm.Spec, error) {
		return pcm.ParseSpec([]byte("steps: [{command: [x], resources: {"+resources+"}}]"), "f")
	}
	spec, err := parse(`cpu: 2, memory: 8 GiB, disk: 10GiB, accelerator: a100.80g, software: [cuda>=12, python], bandwidth: 100 Gbit/s, fabric: infiniband`)
	if err != nil {
		t.Fatal(err)
	}
	shape, err := spec.Steps[0].Shape()
	if want := (pcm.Resources{CPU: 2000, Memory: 8 << 30, GPU: 1, Disk: 10 << 30}); err != nil || shape != want {
		t.Errorf("it is %s, %v", shape, err)
	}
	if got := spec.Steps[0].Resources.Accelerator; got != "vendor=nvidia, model=a100, memory >= 80GiB" {
		t.Errorf("the spec that is signed asks for %q, which not every peer may know", got)
	}
	if spec, err := parse("gpu: 4, accelerator: a100"); err != nil || spec.Steps[0].Resources.GPU != 4 {
		t.Errorf("%+v, %v", spec, err)
	}
	for in, want := range map[string]string{
		"accelerator: a100.80gb":   "steps[0].resources.accelerator: no accelerator is called",
		"software: [cuda>=12, ?]":  "steps[0].resources.software[1]",
		"bandwidth: 100":           "steps[0].resources.bandwidth",
		"fabric: Infini Band":      "steps[0].resources.fabric",
		"disk: many":               "steps[0].resources: size \"many\"",
		"acelerator: a100":         "did you mean accelerator?",
		"accelerator: fp16 >= x,b": "condition 1",
	} {
		if strings.Contains(in, "x,b") {
			in = `accelerator: "fp16 >= x, b"`
		}
		if _, err := parse(in); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "f:1:") {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
	if _, err := pcm.ParseSpec([]byte("steps: [{command: [x], class: cpu.smal}]"), "f"); err == nil || !strings.Contains(err.Error(), "did you mean cpu.small?") {
		t.Errorf("a class that isn't known: %v", err)
	}
}

// TestOwnClasses: a peer's own class is written out into the specs that ask for it.
func TestOwnClasses(t *testing.T) {
	const file = `
accelerators:
  - {name: frob9.16g, vendor: acme, model: frob9, memory: 16GiB, tops: {fp16: 50}}
classes:
  - {name: acme.frob, about: ours, resources: {cpu: 3, memory: 5GiB, accelerator: frob9.16g, software: [frobkit>=2]}}
`
	for range 2 { // reading it again changes nothing
		if err := pcm.AddClasses([]byte(file), "own.yaml"); err != nil {
			t.Fatal(err)
		}
	}
	spec, err := pcm.ParseSpec([]byte("steps: [{command: [x], class: acme.frob, resources: {cpu: 4}}]"), "f")
	if err != nil {
		t.Fatal(err)
	}
	want := pcm.Ask{CPU: "4", Memory: "5GiB", Accelerator: "vendor=acme, model=frob9, memory >= 16GiB", Software: []string{"frobkit>=2"}}
	if got := spec.Steps[0].Resources; !reflect.DeepEqual(got, want) {
		t.Errorf("the spec says %+v, want %+v", got, want)
	}
	// What another peer, which doesn't know the class, makes of such a spec.
	spec.Steps[0].Class = "other.frob"
	if faults := spec.Normalize(); len(faults) > 0 {
		t.Errorf("a class that is spelled out is refused: %v", faults)
	}
	for bad, part := range map[string]string{
		"classes: [{name: cpu.nano, about: x, resources: {cpu: 9, memory: 1GiB}}]":                "known already",
		"classes: [{name: x.y, about: x, resources: {memory: 1GiB}}]":                             "needs cpu and memory",
		"classes: [{name: X Y, about: x, resources: {cpu: 1, memory: 1GiB}}]":                     "not a name",
		"classes: [{name: x.y, about: x, resources: {cpu: 1, memory: 1GiB, accelerator: a1000}}]": "did you mean a100?",
		"accelerators: [{name: x, vendor: v, model: m, memory: 16GiB}]":                           "is called m.16g",
		"accelerators: [{name: m.16g, vendor: v, model: m, memory: 16GiB, tops: {fp17: 5}}]":      `"fp17"`,
		"accelerators: [{name: m.16g, vendor: v, model: m, memory: 16GiB, tops: {fp16: fast}}]":   `"fast"`,
		"clases: []": "did you mean classes?",
	} {
		err := pcm.AddClasses([]byte(bad), "own.yaml")
		var fe *pcm.FileError
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), part) || !strings.HasPrefix(err.Error(), "own.yaml:1:") {
			t.Errorf("%s: %v, want %q", bad, err, part)
		}
	}
}

// TestHostilePools: what others say of their pools is bounded.
func TestHostilePools(t *testing.T) {
	good := func() pcm.Pool {
		k, _ := pcm.FindAccelerator("a100.80g")
		return pcm.Pool{
			ID: "gpu", Adapter: "slurm", Capacity: pcm.Resources{CPU: 1000, GPU: 8, Disk: 1 << 40}, Slots: 1, Price: pcm.Price{Unit: "credit"},
			Accelerator: &k.Accelerator, Software: pcm.Software{"cuda": "12.4"}, Network: &pcm.Network{Bandwidth: 100_000, Fabric: "infiniband"},
		}
	}
	p := good()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	var back pcm.Pool
	if err := pcm.Unmarshal(pcm.MustMarshal(p), &back); err != nil || !reflect.DeepEqual(back, p) {
		t.Errorf("encoded and decoded it is %+v, %v", back, err)
	}
	many := map[pcm.Precision]pcm.Rate{}
	for i := range 17 {
		many[pcm.Precision("p"+string(rune('a'+i)))] = 1
	}
	for name, change := range map[string]func(*pcm.Pool){
		"no name":           func(p *pcm.Pool) { p.Accelerator = &pcm.Accelerator{Memory: 1} },
		"a model to draw":   func(p *pcm.Pool) { p.Accelerator = &pcm.Accelerator{Model: "\x1b[2J"} },
		"memory below zero": func(p *pcm.Pool) { p.Accelerator = &pcm.Accelerator{Model: "m", Memory: -1} },
		"memory beyond all": func(p *pcm.Pool) { p.Accelerator = &pcm.Accelerator{Model: "m", Memory: 5 << 50} },
		"many precisions":   func(p *pcm.Pool) { p.Accelerator = &pcm.Accelerator{Model: "m", TOPS: many} },
		"a negative speed": func(p *pcm.Pool) {
			p.Accelerator = &pcm.Accelerator{Model: "m", TOPS: map[pcm.Precision]pcm.Rate{"fp16": -1}}
		},
		"an endless speed": func(p *pcm.Pool) {
			p.Accelerator = &pcm.Accelerator{Model: "m", TOPS: map[pcm.Precision]pcm.Rate{"fp16": 1 << 62}}
		},
		"a precision to draw": func(p *pcm.Pool) {
			p.Accelerator = &pcm.Accelerator{Model: "m", TOPS: map[pcm.Precision]pcm.Rate{"\n": 1}}
		},
		"software to draw":   func(p *pcm.Pool) { p.Software = pcm.Software{"\n": ""} },
		"a negative network": func(p *pcm.Pool) { p.Network = &pcm.Network{Bandwidth: -1} },
		"a fabric to draw":   func(p *pcm.Pool) { p.Network = &pcm.Network{Fabric: "\n"} },
		"a negative task":    func(p *pcm.Pool) { p.Largest = &pcm.Resources{CPU: -1} },
		"negative disk":      func(p *pcm.Pool) { p.Capacity.Disk = -1 },
	} {
		p := good()
		if change(&p); pcm.ErrorCode(p.Validate()) != pcm.Invalid {
			t.Errorf("%s: is let through", name)
		}
	}
	offer := pcm.Offer{Pools: []pcm.Pool{good()}}
	if err := offer.CheckSize(); err != nil {
		t.Error(err)
	}
	for len(offer.Pools) < 64 {
		offer.Pools = append(offer.Pools, good())
	}
	offer.Pools[7].ID, offer.Pools[7].Labels = "wordy", pcm.Labels{"note": strings.Repeat("x", 63)}
	if err := offer.CheckSize(); pcm.ErrorCode(err) != pcm.TooLarge || !strings.Contains(err.Error(), "pool wordy takes the most") {
		t.Errorf("64 pools: %v", err)
	}
}
