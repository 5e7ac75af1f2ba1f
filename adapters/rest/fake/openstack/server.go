package openstack

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// Nova's words for the status of a server.
const (
	build     = "BUILD"
	active    = "ACTIVE"
	paused    = "PAUSED"
	suspended = "SUSPENDED"
	shutoff   = "SHUTOFF"
	failed    = "ERROR"
)

// extended has vm_state and power_state of each status.
var extended = map[string]struct {
	vm    string
	power int
}{
	build: {"building", 0}, active: {"active", 1}, paused: {"paused", 3}, suspended: {"suspended", 4}, shutoff: {"stopped", 4}, failed: {"error", 0},
}

type server struct {
	id       string
	name     string
	image    string
	flavor   Flavor
	metadata map[string]string
	launch   int // its place among those that were made by one call
	script   []byte
	made     time.Time
	dir      string
	off      chan struct{} // closed when it is to go down before it has booted
	gone     chan struct{} // closed when nothing of it runs, and nothing will

	mu       sync.Mutex
	status   string
	task     string // what is being done to it, "" for nothing
	fault    string
	changed  time.Time
	launched time.Time
	process  *machine.Process
	dead     bool // the power is cut for good
}

func (c *Cloud) createServer(r *http.Request) (int, any, error) {
	var in struct {
		Server struct {
			Name      string
			ImageRef  string
			FlavorRef any
			UserData  string `json:"user_data"`
			Metadata  map[string]string
			Networks  any
			MinCount  *int `json:"min_count"`
			MaxCount  *int `json:"max_count"`
		}
	}
	bad := func(format string, args ...any) (int, any, error) {
		return 0, nil, fail(http.StatusBadRequest, fmt.Sprintf(format, args...))
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return bad("Malformed request body: %v", err)
	}
	v := in.Server
	if strings.TrimSpace(v.Name) == "" || len(v.Name) > maxName {
		return bad("Invalid input for field/attribute name. Value: %.300q. It must have 1 to %d characters.", v.Name, maxName)
	}
	if !slices.Contains(c.o.Images, v.ImageRef) {
		return bad("Invalid imageRef provided: %.100q", v.ImageRef)
	}
	at := slices.IndexFunc(c.o.Flavors, func(f Flavor) bool { return f.ID == fmt.Sprint(v.FlavorRef) })
	if at < 0 {
		return bad("Invalid flavorRef provided: %.100v", v.FlavorRef)
	}
	script, err := base64.StdEncoding.DecodeString(v.UserData)
	if err != nil || len(v.UserData) > maxUserData {
		return bad("User data must be base64 of at most %d characters.", maxUserData)
	}
	if v.Networks == nil && microversion(r) >= 37 {
		return bad("Invalid input for field/attribute server: 'networks' is a required property")
	}
	if len(v.Metadata) > maxMetadata {
		return 0, nil, fail(http.StatusForbidden, fmt.Sprintf("Maximum number of metadata items exceeds %d", maxMetadata))
	}
	for key, value := range v.Metadata {
		if key == "" || len(key) > 255 || len(value) > 255 {
			return bad("Invalid metadata: keys and values have at most 255 characters.")
		}
	}
	f := c.o.Flavors[at]
	least, most := 1, 1
	switch { // what is not said follows from the other
	case v.MinCount != nil && v.MaxCount != nil:
		least, most = *v.MinCount, *v.MaxCount
	case v.MinCount != nil:
		least, most = *v.MinCount, *v.MinCount
	case v.MaxCount != nil:
		most = *v.MaxCount
	}
	if least < 1 || most < 1 {
		return bad("Invalid input for field/attribute min_count. Value: %d. It must be 1 or more.", min(least, most))
	}
	if least > most {
		return bad("min_count must be <= max_count")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	instances, cores, ram, gpus := c.use()
	for _, q := range []struct {
		name             string
		asks, used, most int
	}{{"instances", 1, instances, c.o.Instances}, {"cores", f.VCPUs, cores, c.o.Cores}, {"ram", f.RAM, ram, c.o.RAM}} {
		if c.filled {
			q.used = q.most
		}
		fit := (q.most - q.used) / max(q.asks, 1)
		if fit < least || len(c.order)+least > maxServers || c.closed {
			return 0, nil, fail(http.StatusForbidden, fmt.Sprintf("Quota exceeded for %s: Requested %d, but already used %d of %d %s", q.name, least*q.asks, q.used, q.most, q.name))
		}
		most = min(most, fit, maxServers-len(c.order)) // as many as the quota allows
	}
	now := time.Now()
	var first *server
	for i := range most {
		s := &server{
			id: newID(), name: v.Name, image: v.ImageRef, flavor: f, metadata: v.Metadata, script: script, made: now, changed: now, launch: i,
			status: build, task: "spawning", off: make(chan struct{}), gone: make(chan struct{}),
		}
		if most > 1 {
			s.name = fmt.Sprintf("%s-%d", v.Name, i+1)
		}
		s.dir = filepath.Join(c.o.Dir, s.id)
		if gpus+most*f.GPUs > c.o.GPUs { // there are hosts for all of a call, or for none
			s.status, s.task, s.fault = failed, "", "No valid host was found. There are not enough hosts available."
		}
		c.servers[s.id] = s
		c.order = append(c.order, s)
		if s.status == build {
			c.running.Add(1)
			go c.boot(s)
		} else {
			close(s.gone)
		}
		if first == nil {
			first = s
		}
	}
	return http.StatusAccepted, map[string]any{"server": map[string]any{
		"id": first.id, "adminPass": newID()[:12], "OS-DCF:diskConfig": "MANUAL", "security_groups": []any{map[string]string{"name": "default"}},
		"links": []any{map[string]string{"rel": "self", "href": base(r) + "/compute/v2.1/servers/" + first.id}},
	}}, nil
}

// boot builds the server and runs its user data to its end.
func (c *Cloud) boot(s *server) {
	defer c.running.Done()
	defer close(s.gone)
	select {
	case <-time.After(c.o.Boot):
	case <-s.off:
		return
	}
	p, err := s.start(func() { c.count(s.name) })
	s.mu.Lock()
	if err != nil {
		s.turn(failed, "")
		s.fault = err.Error()
		s.mu.Unlock()
		return
	}
	s.process = p
	s.launched = time.Now()
	if s.status == build {
		s.turn(active, "")
	}
	dead := s.dead
	s.mu.Unlock()
	if dead && p != nil {
		p.Kill()
	}
	if p == nil {
		return // there is nothing to run
	}
	p.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err = os.Stat(filepath.Join(s.dir, "powered-off"))
	if err == nil || s.task == "powering-off" {
		s.turn(shutoff, "")
	}
}

// turn sets the status. The lock is held.
func (s *server) turn(status, task string) {
	s.status, s.task, s.changed = status, task, time.Now()
}

// power is what commands that power a machine off do here: they end all that
// runs in the server, and nothing else.
const power = `#!/bin/sh
: >'%s'
kill -9 0
`

// query answers cloud-init's command of this name.
const query = `#!/bin/sh
case "$*" in
"query ds.meta_data.launch_index") echo %d ;;
*) echo "ERROR: instance-data '$2' has no such key" >&2; exit 1 ;;
esac
`

// start runs the user data if it is a script, as cloud-init does at the first boot.
func (s *server) start(began func()) (*machine.Process, error) {
	bin, root := filepath.Join(s.dir, "bin"), filepath.Join(s.dir, "root")
	for _, d := range []string{bin, root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"poweroff", "halt", "shutdown", "reboot", "init", "systemctl"} {
		if err := machine.WriteFile(filepath.Join(bin, name), fmt.Appendf(nil, power, filepath.Join(s.dir, "powered-off")), 0o755); err != nil {
			return nil, err
		}
	}
	// dmesg -n is how a guest keeps its kernel's messages from the console.
	quiet := filepath.Join(s.dir, "quiet")
	if err := machine.WriteFile(filepath.Join(bin, "dmesg"), fmt.Appendf(nil, "#!/bin/sh\n[ \"$1\" != -n ] || : >'%s'\n", quiet), 0o755); err != nil {
		return nil, err
	}
	// cloud-init tells what the metadata service has: here, the place among the servers of one call.
	if err := machine.WriteFile(filepath.Join(bin, "cloud-init"), fmt.Appendf(nil, query, s.launch), 0o755); err != nil {
		return nil, err
	}
	console := s.console()
	if err := os.WriteFile(console, []byte("[    0.000000] Linux version 6.1.0 (a fake)\n[    0.420000] cloud-init: running modules of final stage\n"), 0o644); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(string(s.script), "#!") {
		return nil, nil
	}
	path := filepath.Join(s.dir, "user-data")
	if err := machine.WriteFile(path, s.script, 0o755); err != nil {
		return nil, err
	}
	began()
	// By its interpreter: a file that was just written may still be held open by another fork.
	first, _, _ := strings.Cut(string(s.script[2:]), "\n")
	command := append(strings.Fields(first), path)
	return machine.Run(machine.Spec{
		Dir: root, Command: command, Output: console, Memory: int64(s.flavor.RAM) << 20,
		Env: []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + root, "INSTANCE_ID=" + s.id},
		Hungriest: func(pid int) {
			if _, err := os.Stat(quiet); err == nil {
				return
			}
			f, err := os.OpenFile(console, os.O_APPEND|os.O_WRONLY, 0)
			if err == nil {
				fmt.Fprintf(f, "[  420.000000] Out of memory: Killed process %d\n", pid)
				f.Close()
			}
		},
	})
}

func (s *server) console() string { return filepath.Join(s.dir, "console.log") }

func (c *Cloud) count(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starts[name]++
}

// cut cuts the power for good. It doesn't wait.
func (s *server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return
	}
	s.dead = true
	close(s.off)
	if s.process != nil {
		s.process.Kill()
	}
}

func (c *Cloud) find(r *http.Request) (*server, error) {
	id := r.PathValue("id")
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.servers[id]; ok {
		return s, nil
	}
	return nil, fail(http.StatusNotFound, "Instance "+id+" could not be found.")
}

func (s *server) view(r *http.Request) map[string]any {
	const form = "2006-01-02T15:04:05Z"
	s.mu.Lock()
	defer s.mu.Unlock()
	var task, launched any
	if s.task != "" {
		task = s.task
	}
	if !s.launched.IsZero() {
		launched = s.launched.UTC().Format("2006-01-02T15:04:05.000000")
	}
	metadata := s.metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	v := map[string]any{
		"id": s.id, "name": s.name, "status": s.status, "created": s.made.UTC().Format(form), "updated": s.changed.UTC().Format(form),
		"OS-EXT-STS:vm_state": extended[s.status].vm, "OS-EXT-STS:power_state": extended[s.status].power, "OS-EXT-STS:task_state": task,
		"OS-SRV-USG:launched_at": launched, "OS-SRV-USG:terminated_at": nil, "OS-EXT-AZ:availability_zone": "nova",
		"tenant_id": "id-project", "user_id": "id-user", "key_name": nil, "config_drive": "", "hostId": "", "progress": 0,
		"addresses": map[string]any{}, "security_groups": []any{map[string]string{"name": "default"}},
		"metadata": metadata, "image": map[string]any{"id": s.image},
		"links": []any{map[string]string{"rel": "self", "href": base(r) + "/compute/v2.1/servers/" + s.id}},
	}
	if microversion(r) >= 47 { // the flavor is told whole, without its ID
		v["flavor"] = map[string]any{"original_name": s.flavor.Name, "vcpus": s.flavor.VCPUs, "ram": s.flavor.RAM, "disk": s.flavor.Disk, "ephemeral": 0, "swap": 0, "extra_specs": s.flavor.Extra}
	} else {
		v["flavor"] = map[string]any{"id": s.flavor.ID}
	}
	if s.fault != "" {
		v["fault"] = map[string]any{"code": 500, "created": s.changed.UTC().Format(form), "message": s.fault}
	}
	return v
}

func (c *Cloud) showServer(r *http.Request) (int, any, error) {
	s, err := c.find(r)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, map[string]any{"server": s.view(r)}, nil
}

// listServers lists the newest first. A name is a regular expression, anywhere in the server's name.
func (c *Cloud) listServers(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	name, err := regexp.Compile(q.Get("name"))
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "Invalid input for query parameters 'name'.")
	}
	c.mu.Lock()
	all := slices.Clone(c.order)
	c.mu.Unlock()
	slices.Reverse(all)
	all = slices.DeleteFunc(all, func(s *server) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !name.MatchString(s.name) || q.Get("status") != "" && !strings.EqualFold(q.Get("status"), s.status)
	})
	part, next, err := page(r, all, func(s *server) string { return s.id })
	if err != nil {
		return 0, nil, err
	}
	list := []any{}
	for _, s := range part {
		list = append(list, s.view(r))
	}
	return http.StatusOK, listed("servers", list, next), nil
}

func (c *Cloud) deleteServer(r *http.Request) (int, any, error) {
	s, err := c.find(r)
	if err != nil {
		return 0, nil, err
	}
	c.forget(s)
	return http.StatusNoContent, nil, nil
}

func (c *Cloud) forget(s *server) {
	s.cut()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.servers, s.id)
	c.order = slices.DeleteFunc(c.order, func(o *server) bool { return o == s })
	if c.closed {
		return // Close waits for what runs already
	}
	c.running.Add(1)
	go func() {
		defer c.running.Done()
		<-s.gone
		_ = os.RemoveAll(s.dir)
	}()
}

// act does one of the things that can be done to a server.
func (c *Cloud) act(r *http.Request) (int, any, error) {
	s, err := c.find(r)
	if err != nil {
		return 0, nil, err
	}
	var in map[string]json.RawMessage
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in) != 1 {
		return 0, nil, fail(http.StatusBadRequest, "There is no such action: one is to be named.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	conflict := func(name string) (int, any, error) {
		return 0, nil, fail(http.StatusConflict, fmt.Sprintf("Cannot '%s' instance %s while it is in vm_state %s", name, s.id, extended[s.status].vm))
	}
	for name, raw := range in {
		switch name {
		case "os-getConsoleOutput":
			var how struct{ Length *int }
			if err := json.Unmarshal(raw, &how); err != nil {
				return 0, nil, fail(http.StatusBadRequest, "Invalid input for field/attribute length.")
			}
			if s.status == build {
				return 0, nil, fail(http.StatusConflict, "Instance "+s.id+" is not ready")
			}
			return http.StatusOK, map[string]any{"output": tail(s.console(), how.Length)}, nil
		case "os-stop":
			if s.status != active || s.task != "" {
				return conflict("stop")
			}
			if s.running() {
				s.task = "powering-off"
				s.process.Stop(c.o.Grace)
			} else {
				s.turn(shutoff, "")
			}
		case "os-start":
			if s.status != shutoff {
				return conflict("start")
			}
			s.turn(active, "")
		case "reboot":
			if s.status != active {
				return conflict("reboot")
			}
			if s.running() {
				s.process.Kill()
			}
		case "pause", "suspend":
			if s.status != active || s.task != "" {
				return conflict(name)
			}
			if s.running() {
				s.process.Pause(true)
			}
			s.turn(map[string]string{"pause": paused, "suspend": suspended}[name], "")
		case "unpause", "resume":
			if s.status != map[string]string{"unpause": paused, "resume": suspended}[name] {
				return conflict(name)
			}
			if s.process != nil {
				s.process.Pause(false)
			}
			s.turn(active, "")
		default:
			return 0, nil, fail(http.StatusBadRequest, "There is no such action: "+name)
		}
	}
	return http.StatusAccepted, nil, nil
}

// running tells whether user data runs. The lock is held.
func (s *server) running() bool {
	if s.process == nil {
		return false
	}
	select {
	case <-s.process.Done():
		return false
	default:
		return true
	}
}

// tail is the end of a console: of at most 100 KiB, and of so many lines.
func tail(path string, lines *int) string {
	_, total := machine.ReadAt(path, 0, 0)
	data, _ := machine.ReadAt(path, max(0, total-maxConsole), maxConsole)
	text := string(data)
	if lines == nil {
		return text
	}
	all := strings.SplitAfter(text, "\n")
	if n := len(all); n > 0 && all[n-1] == "" {
		all = all[:n-1]
	}
	if *lines >= 0 && *lines < len(all) {
		all = all[len(all)-*lines:]
	}
	return strings.Join(all, "")
}

// Starts tells how often servers of this name have run their user data, deleted ones too.
func (c *Cloud) Starts(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts[name]
}

// Fill uses the project's quota up until release is called.
func (c *Cloud) Fill() (release func()) {
	set := func(on bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.filled = on
	}
	set(true)
	return sync.OnceFunc(func() { set(false) })
}

// Forget loses the servers of this name: nothing of them runs, and nobody knows of them.
func (c *Cloud) Forget(name string) {
	c.mu.Lock()
	all := slices.Clone(c.order)
	c.mu.Unlock()
	for _, s := range all {
		if s.name == name {
			c.forget(s)
		}
	}
}
