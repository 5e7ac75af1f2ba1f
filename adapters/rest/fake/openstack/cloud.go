// Package openstack is a fake of an OpenStack cloud: the parts of Keystone v3 and
// of Nova (API 2.1) by which servers are made, watched and deleted. A server is
// a folder of this machine in which its user data really runs, a shell script as
// cloud-init would run it; its console shows what the script prints.
//
// As in the real thing: tokens expire, services are found in the token's catalogue,
// lists go on by marker and links, quotas refuse what is over them, flavors show
// their extra specs from microversion 2.61 on, networks must be named from 2.37
// on, one call makes as many servers as the quota allows up to a count, named by their place,
// which cloud-init's query tells, the console keeps its end only, user data runs once in a server's life, and a server
// whose script has ended is ACTIVE until somebody powers it off, from inside or
// by a call. The guest's kernel kills the process that holds most when memory runs out.
//
// Not as in the real thing: all images and networks are alike and any root may see
// this machine's files; the commands poweroff, halt, shutdown, reboot and dmesg are
// the server's own only if they are called by name; a server that is started or
// rebooted does nothing more. That other clients take it for the real thing is seen
// to in folder judge. Swift, Neutron, Cinder and Glance are not there.
package openstack

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// Bounds, Nova's own where it has them.
const (
	maxBody     = 1 << 20
	maxUserData = 65535  // characters of base64
	maxConsole  = 102400 // bytes from the end of a console
	maxName     = 255
	maxMetadata = 128
	maxPage     = 1000
	maxTokens   = 1000
	maxServers  = 20000
)

// Flavor is a size of servers.
type Flavor struct {
	ID, Name string
	VCPUs    int
	RAM      int // MiB
	Disk     int // GiB
	Extra    map[string]string
	GPUs     int // that a server takes of the cloud's
}

// Options sets a cloud up. The zero value, with Dir, is a small one.
type Options struct {
	Dir                             string // holds the servers; must be there
	User, Password, Domain, Project string // default pcm, secret, Default, demo
	AppID, AppSecret                string // an application credential, if there is one
	Region                          string // default RegionOne
	TokenTTL                        time.Duration
	Flavors                         []Flavor
	Images                          []string // IDs; default one
	Instances, Cores, RAM           int      // the project's quota; default 10, 8, 64 GiB
	GPUs                            int
	Boot                            time.Duration // how long a server is built; default 20 ms
	Grace                           time.Duration // of a shutdown, then the power is cut; default 10 s
}

// DefaultImage is the image of a cloud whose options name none.
const DefaultImage = "70a599e0-31e7-49b7-b260-868f441e862b"

// Cloud is the cloud.
type Cloud struct {
	o      Options
	Faults machine.Faults
	mux    *http.ServeMux

	mu      sync.Mutex
	tokens  map[string]token
	servers map[string]*server
	order   []*server // oldest first
	starts  map[string]int
	filled  bool
	closed  bool
	running sync.WaitGroup
}

// New makes a cloud.
func New(o Options) *Cloud {
	for _, d := range []struct {
		v    *string
		text string
	}{{&o.User, "pcm"}, {&o.Password, "secret"}, {&o.Domain, "Default"}, {&o.Project, "demo"}, {&o.Region, "RegionOne"}} {
		if *d.v == "" {
			*d.v = d.text
		}
	}
	for _, d := range []struct {
		v *int
		n int
	}{{&o.Instances, 10}, {&o.Cores, 8}, {&o.RAM, 64 << 10}} {
		if *d.v == 0 {
			*d.v = d.n
		}
	}
	for _, d := range []struct {
		v    *time.Duration
		time time.Duration
	}{{&o.TokenTTL, time.Hour}, {&o.Boot, 20 * time.Millisecond}, {&o.Grace, 10 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.time
		}
	}
	if o.Images == nil {
		o.Images = []string{DefaultImage}
	}
	if o.Flavors == nil {
		o.Flavors = []Flavor{
			{ID: "1", Name: "m1.small", VCPUs: 1, RAM: 2048, Disk: 20},
			{ID: "2", Name: "m1.large", VCPUs: 4, RAM: 16384, Disk: 80},
		}
		if o.GPUs > 0 {
			o.Flavors = append(o.Flavors, Flavor{ID: "3", Name: "g1.a100", VCPUs: 4, RAM: 32768, Disk: 100, GPUs: 1, Extra: map[string]string{"pci_passthrough:alias": "a100:1"}})
		}
	}
	c := &Cloud{o: o, tokens: map[string]token{}, servers: map[string]*server{}, starts: map[string]int{}}
	c.mux = c.routes()
	return c
}

// Left names the servers that there are.
func (c *Cloud) Left() (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.order {
		names = append(names, "server "+s.name)
	}
	return names
}

// Close kills what runs and waits for it.
func (c *Cloud) Close() {
	c.mu.Lock()
	c.closed = true
	for _, s := range c.order {
		s.cut()
	}
	c.mu.Unlock()
	c.running.Wait()
}

func (c *Cloud) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /identity/v3", c.identity)
	mux.HandleFunc("GET /identity/v3/{$}", c.identity)
	mux.HandleFunc("POST /identity/v3/auth/tokens", c.issue)
	for pattern, f := range map[string]func(*http.Request) (int, any, error){
		"GET /compute/v2.1/flavors/detail":       c.listFlavors,
		"GET /compute/v2.1/limits":               c.limits,
		"POST /compute/v2.1/servers":             c.createServer,
		"GET /compute/v2.1/servers/detail":       c.listServers,
		"GET /compute/v2.1/servers/{id}":         c.showServer,
		"DELETE /compute/v2.1/servers/{id}":      c.deleteServer,
		"POST /compute/v2.1/servers/{id}/action": c.act,
	} {
		mux.HandleFunc(pattern, c.call(f))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		write(w, 0, nil, fail(http.StatusNotFound, "The resource could not be found."))
	})
	return mux
}

// ServeHTTP implements [http.Handler].
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.Faults.Wrap(c.mux).ServeHTTP(w, r)
}

// failure is an error as Nova tells it: in a map under its kind.
type failure struct {
	status  int
	message string
}

func (f *failure) Error() string { return f.message }

func fail(status int, message string) error { return &failure{status, message} }

var kinds = map[int]string{
	400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 409: "conflictingRequest", 413: "overLimit", 500: "computeFault",
}

func write(w http.ResponseWriter, status int, body any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Openstack-Request-Id", "req-"+newID())
	if err != nil {
		var f *failure
		if !errors.As(err, &f) {
			f = &failure{http.StatusInternalServerError, err.Error()}
		}
		w.WriteHeader(f.status)
		_ = json.NewEncoder(w).Encode(map[string]any{kinds[f.status]: map[string]any{"code": f.status, "message": f.message}})
		return
	}
	if body == nil {
		w.Header().Del("Content-Type")
		w.WriteHeader(status)
		return
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// call is a call of Nova's for those with a token of the project.
func (c *Cloud) call(f func(*http.Request) (int, any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !c.known(r.Header.Get("X-Auth-Token")) {
			// Keystone's middleware answers, not Nova.
			w.Header().Set("Www-Authenticate", `Keystone uri="`+base(r)+`/identity"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error": {"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}}`)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		status, body, err := f(r)
		write(w, status, body, err)
	}
}

func base(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// page is the part of a list that comes after the marker, and where it goes on.
func page[T any](r *http.Request, all []T, id func(T) string) (part []T, next []map[string]string, err error) {
	q := r.URL.Query()
	limit := maxPage
	if s := q.Get("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 0 {
			return nil, nil, fail(http.StatusBadRequest, "Invalid input for query parameters 'limit'. Value: "+s)
		}
		limit = min(limit, maxPage)
	}
	from := 0
	if marker := q.Get("marker"); marker != "" {
		for from = range all {
			if id(all[from]) == marker {
				break
			}
		}
		if len(all) == 0 || id(all[from]) != marker {
			return nil, nil, fail(http.StatusBadRequest, "marker ["+marker+"] not found")
		}
		from++
	}
	all = all[from:]
	if limit > 0 && limit <= len(all) {
		part = all[:limit]
		q.Set("marker", id(part[limit-1]))
		u := url.URL{Path: r.URL.Path, RawQuery: q.Encode()}
		next = []map[string]string{{"rel": "next", "href": base(r) + u.String()}}
		return part, next, nil
	}
	return all, nil, nil
}

// microversion is 2.N of what the caller asked for.
func microversion(r *http.Request) int {
	for _, v := range []string{r.Header.Get("X-OpenStack-Nova-API-Version"), r.Header.Get("OpenStack-API-Version")} {
		if len(v) > 8 && v[:8] == "compute " {
			v = v[8:]
		}
		if len(v) > 2 && v[:2] == "2." {
			n, err := strconv.Atoi(v[2:])
			if err == nil {
				return n
			}
		}
	}
	return 1
}

func (c *Cloud) listFlavors(r *http.Request) (int, any, error) {
	part, next, err := page(r, c.o.Flavors, func(f Flavor) string { return f.ID })
	if err != nil {
		return 0, nil, err
	}
	list := []any{}
	for _, f := range part {
		v := map[string]any{
			"id": f.ID, "name": f.Name, "vcpus": f.VCPUs, "ram": f.RAM, "disk": f.Disk, "swap": "",
			"OS-FLV-EXT-DATA:ephemeral": 0, "OS-FLV-DISABLED:disabled": false, "os-flavor-access:is_public": true, "rxtx_factor": 1.0,
		}
		if microversion(r) >= 61 {
			extra := f.Extra
			if extra == nil {
				extra = map[string]string{}
			}
			v["extra_specs"] = extra
		}
		list = append(list, v)
	}
	return http.StatusOK, listed("flavors", list, next), nil
}

func listed(name string, list []any, next []map[string]string) map[string]any {
	out := map[string]any{name: list}
	if next != nil {
		out[name+"_links"] = next
	}
	return out
}

// use is what the project has. The lock is held.
func (c *Cloud) use() (instances, cores, ram, gpus int) {
	for _, s := range c.order {
		instances++
		cores += s.flavor.VCPUs
		ram += s.flavor.RAM
		gpus += s.flavor.GPUs
	}
	return
}

func (c *Cloud) limits(*http.Request) (int, any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	instances, cores, ram, _ := c.use()
	return http.StatusOK, map[string]any{"limits": map[string]any{"rate": []any{}, "absolute": map[string]any{
		"maxTotalInstances": c.o.Instances, "maxTotalCores": c.o.Cores, "maxTotalRAMSize": c.o.RAM,
		"maxServerMeta": maxMetadata, "maxTotalKeypairs": 100, "maxServerGroups": 10, "maxServerGroupMembers": 10,
		"totalInstancesUsed": instances, "totalCoresUsed": cores, "totalRAMUsed": ram, "totalServerGroupsUsed": 0,
	}}}, nil
}
