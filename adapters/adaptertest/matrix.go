package adaptertest

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// envMatrix names the file to which the suite adds what it found, a line of
// JSON for each subject and capability.
const envMatrix = "PCM_TEST_MATRIX"

// Finding is what the suite found of one capability of a subject.
type Finding struct {
	Subject    string `json:"subject"`
	Capability string `json:"capability"`
	Result     Result `json:"result"`
	Reason     string `json:"reason,omitempty"` // why it is unsupported
	Long       bool   `json:"long,omitempty"`   // see [Subject.Long]
}

// Result is that of a capability's test.
type Result string

// The results.
const (
	Pass        Result = "pass"
	Unsupported Result = "unsupported"
	Fail        Result = "fail"
)

// note adds the finding of a test that ends.
func note(t *testing.T, s Subject, c Capability) {
	name := os.Getenv(envMatrix)
	if name == "" || s.Name == "" {
		return
	}
	f := Finding{Subject: s.Name, Capability: c.Name, Result: Pass, Reason: s.Unsupported[c.Name], Long: s.Long}
	switch {
	case t.Failed():
		f.Result = Fail
	case t.Skipped():
		f.Result = Unsupported
	}
	if err := appendTo(name, Matrix{f.Subject: {f.Capability: f}}); err != nil {
		t.Errorf("can't add to the matrix: %v", err)
	}
}

// Add adds what 'pcm adapter test' has found to the matrix of the run that has called
// it, if there is one: as a subject that not every run has.
func Add(subject string, row map[string]Finding) error {
	name := os.Getenv(envMatrix)
	if name == "" || subject == "" {
		return nil
	}
	all := map[string]Finding{}
	for c, f := range row {
		f.Subject, f.Long = subject, true
		all[c] = f
	}
	return appendTo(name, Matrix{subject: all})
}

func appendTo(name string, m Matrix) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(m.Encode())
	return errors.Join(err, file.Close())
}

// Matrix is what the suite found of every subject, by its name and the capability's.
type Matrix map[string]map[string]Finding

// ReadFindings reads what runs of the suite have added to a file. Of what was tested
// more than once the last counts: what failed is tried again in CI, which lists it.
func ReadFindings(data []byte) (Matrix, error) {
	m := Matrix{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		var f Finding
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return nil, fmt.Errorf("finding %q: %w", lines.Text(), err)
		}
		if m[f.Subject] == nil {
			m[f.Subject] = map[string]Finding{}
		}
		m[f.Subject][f.Capability] = f
	}
	return m, lines.Err()
}

// Encode is the matrix as it is kept: sorted findings, a line each.
func (m Matrix) Encode() []byte {
	var all []Finding
	for _, row := range m {
		for _, f := range row {
			all = append(all, f)
		}
	}
	order := places()
	slices.SortFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(order[a.Capability], order[b.Capability]), cmp.Compare(a.Capability, b.Capability))
	})
	var buf bytes.Buffer
	for _, f := range all {
		line, _ := json.Marshal(f) // of strings: can't fail
		buf.Write(append(line, '\n'))
	}
	return buf.Bytes()
}

func places() map[string]int {
	order := map[string]int{}
	for i, c := range Capabilities() {
		order[c.Name] = i
	}
	return order
}

// Differences says in what a run differs from what is kept. A subject that takes
// long need not be in the run, nor any if the run is of some only.
func (m Matrix) Differences(run Matrix, some bool) (all []string) {
	for _, subject := range sorted(m) {
		if run[subject] == nil && !some {
			long := false
			for _, f := range m[subject] {
				long = long || f.Long
			}
			if !long {
				all = append(all, subject+" was not tested")
			}
		}
	}
	for _, subject := range sorted(run) {
		for _, c := range Capabilities() {
			kept, now := m[subject][c.Name], run[subject][c.Name]
			switch {
			case now.Result == "":
				all = append(all, fmt.Sprintf("%s: %s was not tested", subject, c.Name))
			case kept != now:
				all = append(all, fmt.Sprintf("%s: %s is %q %s, was %q %s", subject, c.Name, now.Result, now.Reason, kept.Result, kept.Reason))
			}
		}
	}
	return all
}

// With is the matrix with the subjects of a run in it.
func (m Matrix) With(run Matrix) Matrix {
	all := Matrix{}
	for subject, row := range m {
		all[subject] = row
	}
	for subject, row := range run {
		all[subject] = row
	}
	return all
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Lines is how much there is of an adapter, in lines that hold more than white space
// or a comment of the whole line.
type Lines struct {
	Adapter   string `json:"adapter"`
	Kind      string `json:"kind"`                // built in, described, generated
	Described int    `json:"described,omitempty"` // YAML
	Generated int    `json:"generated,omitempty"` // code made of a description or of the contract
	Support   int    `json:"support,omitempty"`   // code that is the same in each generated project of a language
	Written   int    `json:"written"`             // code by hand
}

// ReadLines reads what the command matrix has counted.
func ReadLines(data []byte) (all []Lines, err error) {
	return all, json.Unmarshal(data, &all)
}

func linesTable(b *strings.Builder, all []Lines) {
	b.WriteString(`
## What each took to write

Counted by ` + "`go run ./adapters/adaptertest/matrix -count`" + `, in lines of code that hold something, without tests and comments, and without
what protoc makes. Described adapters share one engine, and generated ones the support of their language.

| adapter | kind | described | generated | support | written by hand | not by hand |
|---|---|---|---|---|---|---|
`)
	for _, l := range all {
		share := 0.0
		if sum := l.Described + l.Generated + l.Support + l.Written; sum > 0 {
			share = 100 * float64(sum-l.Written) / float64(sum)
		}
		fmt.Fprintf(b, "| %s | %s | %d | %d | %d | %d | %.0f %% |\n", l.Adapter, l.Kind, l.Described, l.Generated, l.Support, l.Written, share)
	}
}

// Page renders the matrix, and what each adapter took to write.
func (m Matrix) Page(written []Lines) string {
	var b strings.Builder
	b.WriteString(`# What each adapter can do

Written by ` + "`make test-backends` and, of plug-ins in Python and TypeScript, `make test-plugins`" + `, from what the conformance suite (` + "`adapters/adaptertest`" + `) found with the real servers; not by hand.
**yes**: tested and passed. A number: not supported, for the reason below. **FAIL**: it should, and doesn't.

## Operations on running tasks

`)
	notes := &notes{}
	m.table(&b, notes, func(c Capability) bool {
		return c.Operation || slices.Contains([]string{"exit codes and streams", "logs", "stop by force"}, c.Name)
	})
	b.WriteString("\n## The whole contract\n\n")
	m.table(&b, notes, func(c Capability) bool { return !c.Operation })
	b.WriteString("\n## Why not\n\n")
	for i, text := range notes.list {
		fmt.Fprintf(&b, "%d. %s\n", i+1, text)
	}
	if len(written) > 0 {
		linesTable(&b, written)
	}
	return b.String()
}

// notes are the reasons below the tables, each once.
type notes struct{ list []string }

func (n *notes) number(text string) int {
	i := slices.Index(n.list, text)
	if i < 0 {
		n.list, i = append(n.list, text), len(n.list)
	}
	return i + 1
}

func (m Matrix) table(b *strings.Builder, n *notes, show func(Capability) bool) {
	subjects := sorted(m)
	fmt.Fprintf(b, "| | %s |\n|---|%s\n", strings.Join(subjects, " | "), strings.Repeat("---|", len(subjects)))
	for _, c := range Capabilities() {
		if !show(c) {
			continue
		}
		fmt.Fprintf(b, "| %s |", c.Name)
		for _, s := range subjects {
			switch f := m[s][c.Name]; f.Result {
			case Pass:
				b.WriteString(" yes |")
			case Unsupported:
				fmt.Fprintf(b, " %d |", n.number(f.Reason))
			case Fail:
				b.WriteString(" **FAIL** |")
			default:
				b.WriteString(" not tested |")
			}
		}
		b.WriteString("\n")
	}
}
