package plugin

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Config says what the plug-in is and how it is run. All of it may stand in a
// process's arguments: secrets go by reference.
type Config struct {
	Name     string            `json:"name"`               // of the adapter: pools and specs see it
	Command  []string          `json:"command"`            // absolute path and arguments
	User     string            `json:"user,omitempty"`     // whose process it is; "": the supervisor's own
	Settings json.RawMessage   `json:"settings,omitempty"` // a JSON object, for the plug-in alone
	Secrets  map[string]string `json:"secrets,omitempty"`  // by name: env:NAME or file:PATH
	Instance string            `json:"instance"`           // names the node at its back ends
	Version  string            `json:"version,omitempty"`  // of PCM

	Dir    string       `json:"-"` // the supervisor's folder, as in supervisor.Config
	Logger *slog.Logger `json:"-"`
	Times  Times        `json:"-"`
}

// Times are the plug-in's deadlines; zero parts are their defaults.
type Times struct {
	Listen    time.Duration // from its start until it listens: 10 s
	Hang      time.Duration // for how long it may be silent before it is ended and started anew: 2 min
	Heartbeat time.Duration // 2 s
	End       time.Duration // from SIGTERM to SIGKILL: 10 s
	Kill      time.Duration // for an attempt to end after a hard stop: 10 s
	Back      time.Duration // the longest wait before another start: 1 min
	Orphan    time.Duration // how long what nobody follows is left alone: 5 s
}

func (t Times) defaults() Times {
	t.Listen = cmp.Or(t.Listen, 10*time.Second)
	t.Hang = cmp.Or(t.Hang, 2*time.Minute)
	t.Heartbeat = cmp.Or(t.Heartbeat, 2*time.Second)
	t.End = cmp.Or(t.End, 10*time.Second)
	t.Kill = cmp.Or(t.Kill, 10*time.Second)
	t.Back = cmp.Or(t.Back, time.Minute)
	t.Orphan = cmp.Or(t.Orphan, 5*time.Second)
	return t
}

const (
	maxName    = 32
	maxSecrets = 32
	maxSecret  = 64 << 10
)

// Validate finds what is wrong with the configuration; the first fault, a *pcm.FieldError.
func (c Config) Validate() error {
	fault := func(field, format string, args ...any) error {
		return &pcm.FieldError{Field: field, Err: pcm.Errorf(pcm.Invalid, format, args...)}
	}
	switch {
	case !pcm.ValidName(c.Name) || len(c.Name) > maxName || strings.Contains(c.Name, "."):
		return fault("name", "%q is not a name of at most %d lower-case letters, digits and dashes", c.Name, maxName)
	case slices.Contains(reserved, c.Name):
		return fault("name", "%q is the name of an adapter that is built in: choose another", c.Name)
	case len(c.Command) == 0 || !filepath.IsAbs(c.Command[0]):
		return fault("command", "%q does not begin with the absolute path of a program", c.Command)
	case len(c.Secrets) > maxSecrets:
		return fault("secrets", "%d secrets are too many: at most %d", len(c.Secrets), maxSecrets)
	}
	if len(c.Settings) > 0 {
		var object map[string]any
		if err := json.Unmarshal(c.Settings, &object); err != nil {
			return fault("settings", "they are not an object: %v", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Secrets)) {
		if _, _, err := reference(c.Secrets[name]); err != nil {
			return &pcm.FieldError{Field: "secrets." + name, Err: err}
		}
	}
	if c.User != "" {
		if _, err := findUser(c.User); err != nil {
			return &pcm.FieldError{Field: "user", Err: err}
		}
	}
	return nil
}

// reserved are the names of adapters that are built in.
var reserved = append(slices.Clone(adapters.BuiltIn), "rest")

// reference takes the reference to a secret apart.
func reference(ref string) (kind, where string, err error) {
	kind, where, _ = strings.Cut(ref, ":")
	switch {
	case kind == "env" && where != "" && !strings.ContainsAny(where, "=\x00"):
	case kind == "file" && filepath.IsAbs(where):
	default: // not shown: it may be the secret itself
		return "", "", pcm.Errorf(pcm.Invalid, "this is no reference to a secret: write env:NAME or file:/absolute/path, never the secret itself")
	}
	return kind, where, nil
}

// Environ are the variables, NAME=value, that the secrets refer to, for the
// environment of the process that resolves them.
func (c Config) Environ(getenv func(string) string) []string {
	var all []string
	for _, ref := range c.Secrets {
		if kind, name, err := reference(ref); err == nil && kind == "env" {
			all = append(all, name+"="+getenv(name))
		}
	}
	slices.Sort(all)
	return all
}

// secrets resolves the references.
func (c Config) secrets() (map[string]string, error) {
	all := map[string]string{}
	for name, ref := range c.Secrets {
		kind, where, err := reference(ref)
		if err != nil {
			return nil, err
		}
		value := os.Getenv(where)
		if kind == "file" {
			f, err := os.Open(where)
			if err != nil {
				return nil, pcm.Errorf(pcm.Unavailable, "secret %s of plug-in %s: %w", name, c.Name, err)
			}
			data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
			f.Close()
			if err != nil || len(data) > maxSecret {
				return nil, pcm.Errorf(pcm.Unavailable, "secret %s of plug-in %s: %s can't be read, or is longer than %d bytes", name, c.Name, where, maxSecret)
			}
			value = strings.TrimRight(string(data), "\r\n")
		}
		if value == "" {
			return nil, pcm.Errorf(pcm.Unavailable, "secret %s of plug-in %s is empty: set %s", name, c.Name, ref)
		}
		all[name] = value
	}
	return all, nil
}

// account is the user whose process a plug-in is.
type account struct {
	uid, gid uint32
	groups   []uint32
}

func findUser(name string) (account, error) {
	var none account
	u, err := user.Lookup(name)
	if err != nil {
		return none, pcm.Errorf(pcm.Invalid, "there is no user %q here: make it, or leave user out", name)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		return none, pcm.Errorf(pcm.Invalid, "user %q has no numbers", name)
	}
	if os.Geteuid() != 0 && int(uid) != os.Geteuid() {
		return none, pcm.Errorf(pcm.Invalid, "only root can run a plug-in as another user (%s): run the node as root, or leave user out", name)
	}
	a := account{uid: uint32(uid), gid: uint32(gid)}
	ids, err := u.GroupIds()
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			a.groups = append(a.groups, uint32(n))
		}
	}
	if err != nil {
		a.groups = []uint32{a.gid}
	}
	return a, nil
}

// folders are where a plug-in's files are.
type folders struct {
	home   string // ours alone
	place  string // reached by us and the plug-in
	apart  bool   // the plug-in is another user's
	number account
}

// systemPlace holds the folders of plug-ins that are other users'; those can't reach the data folder.
const systemPlace = "/var/lib/pcm/plugins"

// maxSocket is the longest path that a socket may have.
const maxSocket = 107

func (c Config) folders() (folders, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return folders{}, pcm.Errorf(pcm.Invalid, "folder %q: %w", c.Dir, err)
	}
	f := folders{home: filepath.Join(dir, "plugins", c.Name), number: account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}}
	f.place = f.home
	if c.User != "" {
		if f.number, err = findUser(c.User); err != nil {
			return f, err
		}
		f.apart = int(f.number.uid) != os.Geteuid()
	}
	if sum := sha256.Sum256([]byte(dir)); f.apart {
		f.place = filepath.Join(systemPlace, hex.EncodeToString(sum[:6]), c.Name)
	} else if len(f.socket()) > maxSocket {
		base := cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), filepath.Join(os.TempDir(), "pcm-"+strconv.Itoa(os.Geteuid())))
		f.place = filepath.Join(base, "pcm-"+hex.EncodeToString(sum[:6]), c.Name)
	}
	if len(f.socket()) > maxSocket {
		return f, pcm.Errorf(pcm.Invalid, "the path of the socket of plug-in %s is longer than a socket's path may be: %s; choose a shorter data folder", c.Name, f.socket())
	}
	return f, nil
}

func (f folders) socket() string { return filepath.Join(f.place, "run", "s") }
func (f folders) lasting() string {
	return filepath.Join(f.place, "state")
}
func (f folders) stages() string    { return filepath.Join(f.place, "work") }
func (f folders) stateFile() string { return filepath.Join(f.home, "state.json") }
func (f folders) heldFile() string  { return filepath.Join(f.home, "held.json") }
func (f folders) logFile() string   { return filepath.Join(f.home, "log") }

// make makes them. What is above the plug-in's own folders stays ours, so that it
// can't lead us elsewhere.
func (f folders) make() error {
	if err := os.MkdirAll(f.home, 0o700); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't make the folder of a plug-in: %w", err)
	}
	if f.place != f.home {
		above := filepath.Dir(f.place)
		mode := os.FileMode(0o700)
		if f.apart {
			mode = 0o711
			if err := os.MkdirAll(systemPlace, 0o755); err != nil {
				return pcm.Errorf(pcm.Unavailable, "can't make the folder of a plug-in: %w", err)
			}
		}
		if err := os.MkdirAll(above, mode); err != nil {
			return pcm.Errorf(pcm.Unavailable, "can't make the folder of a plug-in: %w", err)
		}
		if err := f.own(filepath.Dir(above), above); err != nil {
			return err
		}
		if f.apart {
			if err := os.Chmod(above, mode); err != nil { // whatever the umask
				return pcm.Errorf(pcm.Unavailable, "can't open the folder of a plug-in to it: %w", err)
			}
		}
	}
	for _, dir := range []struct {
		name  string
		its   bool
		whole bool
	}{{name: f.place}, {name: filepath.Dir(f.socket()), its: true}, {name: f.lasting(), its: true}, {name: f.stages()}} {
		if err := os.Mkdir(dir.name, 0o700); err != nil && !os.IsExist(err) {
			return pcm.Errorf(pcm.Unavailable, "can't make the folder of a plug-in: %w", err)
		}
		if err := f.give(dir.name, dir.its); err != nil {
			return err
		}
	}
	return nil
}

// own refuses folders that others could exchange.
func (f folders) own(dirs ...string) error {
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			return pcm.Errorf(pcm.Unavailable, "%s is not a folder", dir)
		}
		if id := ownerOf(info); id != os.Geteuid() && id != 0 {
			return pcm.Errorf(pcm.Refused, "%s belongs to user %d: nobody else than this node's user may own what leads to a plug-in", dir, id)
		}
	}
	return nil
}

// give opens a folder to the plug-in: as its own, or to look for what it knows.
func (f folders) give(name string, its bool) error {
	if !f.apart {
		return nil
	}
	uid, mode := 0, os.FileMode(0o710)
	if its {
		uid, mode = int(f.number.uid), 0o700
	}
	if err := os.Lchown(name, uid, int(f.number.gid)); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't give a folder to the plug-in's user: %w", err)
	}
	if its {
		return nil // made with this mode; what it makes of it is its own
	}
	if err := os.Chmod(name, mode); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't open a folder to the plug-in's user: %w", err)
	}
	return nil
}
