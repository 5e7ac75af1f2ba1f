package artifact

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
)

// Pins say who needs which artifact; what is pinned is never collected. They
// stand in a file to which lines are appended:
//
//	+ <digest> "<owner>"
//	- "<owner>"
//
// A last line that a crash cut short is dropped on opening. The file isn't
// synced: an owner whose pin a power failure could lose pins again when it
// starts, which costs nothing.

type pinTable struct {
	owners map[string]map[sum]struct{}
	count  map[sum]int // owners of each
	total  int         // pairs of owner and artifact
	lines  int         // in the file
	torn   bool        // the file may end in half a line: write it anew
}

const (
	pinsFile = "pins"
	maxOwner = 256
	maxPins  = 1 << 20
)

func (p *pinTable) add(owner string, name sum) bool {
	set := p.owners[owner]
	if set == nil {
		set = map[sum]struct{}{}
		p.owners[owner] = set
	}
	if _, ok := set[name]; ok {
		return false
	}
	set[name] = struct{}{}
	p.count[name]++
	p.total++
	return true
}

func (p *pinTable) remove(owner string) bool {
	set, ok := p.owners[owner]
	p.total -= len(set)
	for name := range set {
		if p.count[name]--; p.count[name] == 0 {
			delete(p.count, name)
		}
	}
	delete(p.owners, owner)
	return ok
}

func (s *Store) loadPins() error {
	s.pins = pinTable{owners: map[string]map[sum]struct{}{}, count: map[sum]int{}}
	f, err := os.Open(s.path(pinsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break // the end, or a line that was cut short
		}
		op, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch op {
		case "+":
			digest, quoted, _ := strings.Cut(rest, " ")
			name, err1 := sumOf(pcm.Digest(digest))
			owner, err2 := strconv.Unquote(quoted)
			if err1 == nil && err2 == nil {
				s.pins.add(owner, name)
				continue
			}
		case "-":
			if owner, err := strconv.Unquote(rest); err == nil {
				s.pins.remove(owner)
				continue
			}
		}
		s.log.Warn("passed over a damaged line of the pins file", "file", s.path(pinsFile), "line", fmt.Sprintf("%.200q", line))
	}
	return s.rewritePins()
}

// rewritePins writes the table without its history; mu is held, or nobody else has the store yet.
func (s *Store) rewritePins() error {
	var b strings.Builder
	lines := 0
	for owner, set := range s.pins.owners {
		for name := range set {
			fmt.Fprintf(&b, "+ %s %q\n", name, owner)
			lines++
		}
	}
	tmp := s.path(dirTmp, pinsFile)
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	if err := syncPath(tmp); err != nil { // the old file is about to go
		return err
	}
	s.pins.lines = lines
	return os.Rename(tmp, s.path(pinsFile))
}

// Pin keeps artifacts from being collected until owner is unpinned; they need
// not be here yet. An owner is a short text of the caller's, e.g. "job/job-x7k2…".
func (s *Store) Pin(owner string, digests ...pcm.Digest) error {
	if owner == "" || len(owner) > maxOwner {
		return pcm.Errorf(pcm.Invalid, "%.80q is not the owner of a pin: 1 to %d characters", owner, maxOwner)
	}
	names := make([]sum, len(digests))
	for i, d := range digests {
		name, err := sumOf(d)
		if err != nil {
			return err
		}
		names[i] = name
	}
	s.gcMu.Lock() // a collection under way would not see the pin
	defer s.gcMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins.total+len(names) > maxPins {
		return pcm.Errorf(pcm.Refused, "the artifact store has %d pins, at most %d: remove old jobs", s.pins.total, maxPins)
	}
	var b strings.Builder
	lines := 0
	for _, name := range names {
		if s.pins.add(owner, name) {
			fmt.Fprintf(&b, "+ %s %q\n", name, owner)
			lines++
		}
	}
	return s.appendPins(b.String(), lines)
}

// Unpin takes back all pins of owner. Nothing happens if it has none.
func (s *Store) Unpin(owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pins.remove(owner) {
		return nil
	}
	return s.appendPins(fmt.Sprintf("- %q\n", owner), 1)
}

// appendPins adds to the file; mu is held.
func (s *Store) appendPins(text string, lines int) error {
	if lines == 0 {
		return nil
	}
	if s.pins.torn || s.pins.lines+lines > 2*s.pins.total+4096 {
		if err := s.rewritePins(); err != nil {
			return s.diskError("write the pins file", err)
		}
		s.pins.torn = false
		return nil
	}
	f, err := os.OpenFile(s.path(pinsFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		s.pins.torn = true
		return s.diskError("write the pins file", err)
	}
	s.pins.lines += lines
	return nil
}

// Owners lists who has pins, sorted.
func (s *Store) Owners() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	owners := make([]string, 0, len(s.pins.owners))
	for o := range s.pins.owners {
		owners = append(owners, o)
	}
	slices.Sort(owners)
	return owners
}

// Pins lists what owner has pinned, sorted.
func (s *Store) Pins(owner string) []pcm.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ds []pcm.Digest
	for name := range s.pins.owners[owner] {
		ds = append(ds, name.digest())
	}
	slices.Sort(ds)
	return ds
}
