package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// evidenceDir keeps what shows that a log has two histories: a folder for each
// case, with the two checkpoints. It is for people: the node never removes any.
const evidenceDir = "evidence"

// maxEvidence bounds the cases that are kept.
const maxEvidence = 32

// alarms are cases of two histories of one log.
type alarms struct {
	dir string

	mu    sync.Mutex
	cases []string // names of folders
}

// openAlarms reads which cases there are already.
func openAlarms(dir string) (*alarms, error) {
	a := &alarms{dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, pcm.Errorf(pcm.Internal, "can't read %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			a.cases = append(a.cases, e.Name())
		}
	}
	return a, nil
}

// SaveEvidence keeps a checkpoint and another of the same log that contradicts it,
// in a folder below dir, and returns that folder's name; "" if the case is kept
// already or there are too many.
func SaveEvidence(dir string, a, b []byte) (string, error) {
	c, err := tlog.ParseCheckpoint(a)
	if err != nil {
		return "", err
	}
	if _, err := tlog.ParseCheckpoint(b); err != nil {
		return "", err
	}
	// One case for each head that is contradicted, whoever signed it and however far
	// the other history has come since.
	name := fmt.Sprintf("split-%d-%s", c.Size, pcm.DigestOf([]byte(c.Text()))[:16])
	path := filepath.Join(dir, name)
	if entries, err := os.ReadDir(dir); err == nil && len(entries) >= maxEvidence {
		return "", nil
	}
	if _, err := os.Stat(path); err == nil {
		return "", nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", pcm.Errorf(pcm.Internal, "can't make %s: %w", path, err)
	}
	if err := writeFile(filepath.Join(path, "a.checkpoint"), a); err != nil {
		return "", err
	}
	return name, writeFile(filepath.Join(path, "b.checkpoint"), b)
}

// alarm keeps a checkpoint that this peer's own log contradicts, with what this
// peer has to show against it: the last checkpoint that it served, if that is of
// its present log and large enough to contradict, else its head.
func (t *transparency) alarm(ctx context.Context, note []byte, own *tlog.Tree) {
	mine := []byte(own.Head().Text())
	t.latestMu.Lock()
	latest := t.latest
	t.latestMu.Unlock()
	theirs, _ := tlog.ParseCheckpoint(note)
	if c, err := tlog.ParseCheckpoint(latest); err == nil && c.Size >= theirs.Size {
		if ok, err := own.Extends(ctx, c); err == nil && ok {
			mine = latest
		}
	}
	name, err := SaveEvidence(t.alarms.dir, note, mine)
	if err != nil {
		t.log.Error("two histories of one ledger, and the evidence can't be kept", "error", err)
	}
	if name == "" {
		return
	}
	t.log.Error("two histories of one ledger", "evidence", filepath.Join(t.alarms.dir, name))
	t.alarms.mu.Lock()
	defer t.alarms.mu.Unlock()
	if !slices.Contains(t.alarms.cases, name) {
		t.alarms.cases = append(t.alarms.cases, name)
	}
}

// warnings are what status shows.
func (a *alarms) warnings() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for _, name := range a.cases {
		list = append(list, fmt.Sprintf("ALARM: the ledger was shown with two histories; the two checkpoints are in %s: somebody who signs lies or lost data, compare them with the other owners", filepath.Join(a.dir, name)))
	}
	return list
}
