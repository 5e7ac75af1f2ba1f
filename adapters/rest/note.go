package rest

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// stage is how far an attempt has come at the back end.
type stage string

const (
	fresh  stage = ""       // nothing is there but, perhaps, files and what steps made
	making stage = "making" // create was called, or is about to be: it may be there
	made   stage = "made"   // it is there
	over   stage = "over"   // it has ended there
)

// note is what must be known of an attempt to find again, and to delete, what it
// has at the back end. It is written before anything is made there, and removed
// when nothing is left.
type note struct {
	Task  adapters.Task  `json:"task"`
	Nonce string         `json:"nonce"` // of the script's marks
	Pool  map[string]any `json:"pool"`  // id, native
	Data  map[string]any `json:"data,omitempty"`
	Let   map[string]any `json:"let,omitempty"`
	Step  map[string]any `json:"step,omitempty"`
	// The call for many jobs by which it was, or was to be, made.
	Array   *description.Array `json:"array,omitempty"`
	Alone   bool               `json:"alone,omitempty"` // it was not found there, and was created by itself: it may be either
	Stage   stage              `json:"stage,omitempty"`
	Asked   time.Time          `json:"asked,omitzero"`    // when create was called last
	ID      string             `json:"id,omitempty"`      // the job's, at the back end
	Script  string             `json:"-"`                 // made anew where it is needed
	Link    string             `json:"-"`                 // to the script in the store; likewise
	Doubt   bool               `json:"doubt,omitempty"`   // it may be there more than once
	Stored  bool               `json:"stored,omitempty"`  // objects may be in the store
	Dying   bool               `json:"dying,omitempty"`   // nobody wants it any more
	Forced  bool               `json:"forced,omitempty"`  // it is to be killed first
	Objects []string           `json:"objects,omitempty"` // their keys
}

// notebook is the folder of notes.
type notebook string

func (n notebook) open() error {
	if err := os.MkdirAll(string(n), 0o700); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't make the folder of notes: %w", err)
	}
	return nil
}

func (n notebook) file(key string) string { return filepath.Join(string(n), key+".json") }

// save writes a note, so that it is there whole or not at all.
func (n notebook) save(o *note) error { return n.write(o, false) }

// keep is save for what must outlive a crash of the machine, too: without it, nobody
// would know any more of what is made next.
func (n notebook) keep(all ...*note) error {
	for _, o := range all {
		if err := n.write(o, true); err != nil {
			return err
		}
	}
	if err := syncFolder(string(n)); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't note where the attempt is: %w", err)
	}
	return nil
}

func (n notebook) write(o *note, sync bool) error {
	data, err := json.Marshal(o)
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't encode a note: %w", err)
	}
	name := n.file(o.Task.Key.String())
	err = writeFile(name+".new", data, sync)
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't note where the attempt is: %w", err)
	}
	return nil
}

func writeFile(name string, data []byte, sync bool) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	return cmp.Or(err, f.Close())
}

func syncFolder(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return cmp.Or(f.Sync(), f.Close())
}

// load reads a note; nil if there is none that can be read.
func (n notebook) load(key string) *note {
	data, err := os.ReadFile(n.file(key))
	if err != nil {
		return nil
	}
	o := new(note)
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	if d.Decode(o) != nil || o.Task.Key.String() != key {
		return nil
	}
	for _, m := range []map[string]any{o.Pool, o.Data, o.Let, o.Step} {
		plain(m)
	}
	return o
}

func (n notebook) has(key string) bool {
	_, err := os.Lstat(n.file(key))
	return err == nil
}

func (n notebook) remove(key string) error {
	if err := os.Remove(n.file(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// keys are those of all notes.
func (n notebook) keys() []string {
	entries, err := os.ReadDir(string(n))
	if err != nil {
		return nil
	}
	var all []string
	for _, e := range entries {
		key, ok := strings.CutSuffix(e.Name(), ".json")
		if _, err := adapters.ParseKey(key); ok && err == nil {
			all = append(all, key)
		}
	}
	return all
}

func newNonce() string { return "pcm-" + strings.ToLower(rand.Text()) + "-" }
