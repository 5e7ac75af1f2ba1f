// Package modelarts is a fake of Huawei Cloud ModelArts: its training jobs, API
// version 2, for tests and for play. It really runs what it is told, as processes of
// this machine, with inputs from and outputs to an object store.
//
// # What it does
//
//	POST   /v2/{project_id}/training-jobs                                      create
//	POST   /v2/{project_id}/training-job-searches                              list, with filters and pages
//	GET    /v2/{project_id}/training-jobs/{id}                                 show
//	PUT    /v2/{project_id}/training-jobs/{id}                                 change the description
//	POST   /v2/{project_id}/training-jobs/{id}/actions                         terminate
//	DELETE /v2/{project_id}/training-jobs/{id}                                 delete
//	GET    /v2/{project_id}/training-jobs/{id}/events                          events
//	GET    /v2/{project_id}/training-jobs/{id}/tasks/{task}/logs/preview|url   log
//	GET    /v2/{project_id}/training-job-flavors, /training-job-engines, /training-quotas
//
// Every request must be signed SDK-HMAC-SHA256, body included. Jobs have one node.
// A job's paths below /home/ma-user are made inside the job's folder; the program
// finds them by the variables that the real service sets (MA_HOME, MA_MOUNT_PATH,
// MA_JOB_DIR, MA_LOG_DIR) and, where an input or output asks for access_method
// "env", by a variable of its name. So what uses those runs here and there.
//
// # What is known, and what is a guess
//
// From the vendor's Go SDK, which the module in judge holds against this fake: paths,
// JSON names and types, the signature, which doesn't cover the host, and that a deletion
// is answered without a body (the reference shows an empty text). From the published API reference: statuses
// (201, 202), limits (names, descriptions, variables, pages of at most 50, 5 MB of
// preview), that offset counts pages, that links to logs are valid for 5 minutes, the
// example flavors, the words of events, and the error codes ModelArts.2755,
// ModelArts.50004000, APIGW.0301 and APIGW.0308. There is no token of idempotency.
//
// Guesses: that names may repeat; the code of each other error; what the message of a
// task's status says; that outputs are stored once, at the end, however the job ends;
// that an ended job can't be terminated; that a log is empty before the job runs; that
// deleting a running job ends it; that a job is asked to end by SIGTERM.
//
// Not here: several nodes, algorithms and data sets of the registry, search jobs,
// volumes, endpoints, metrics, dedicated pools, tokens of IAM. The real service mixes
// lines of its own, "[ModelArts Service Log]…", into logs; [Options.ServiceLog] does so too.
package modelarts

import (
	"cmp"
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
)

const (
	maxJobs      = 10_000 // that are remembered
	maxBody      = 1 << 20
	maxEvents    = 200 // of a job
	maxEnv       = 100 // as documented
	maxEnvName   = 8192
	maxEnvValue  = 4096
	maxPage      = 50
	maxPreview   = 5 << 20 // bytes, as documented
	maxFiles     = 10_000  // of an input or output
	maxDescribed = 256
	linkValid    = 5 * time.Minute
)

// Options of a fake. Dir and Store must be set.
type Options struct {
	Dir            string // of the jobs' files
	Store          *objects.Store
	StoreURL       string // where the store is reached, for links to logs
	Project        string
	Access, Secret string // the pair of keys that requests are signed with; the store must know it
	Flavors        []Flavor
	Engines        []Engine
	Slots          int           // jobs that run at once; the others wait
	Quota          int           // jobs that there may be, ended ones left out
	Grace          time.Duration // from SIGTERM to SIGKILL
	Creating       time.Duration // how long a job stays in phase Creating
	Rate           int           // calls a second; 0: any number
	UniqueNames    bool          // refuse a name that another job has
	ServiceLog     bool          // put the service's own lines into logs
	Now            func() time.Time
}

// Cloud is the fake. It is an [http.Handler].
type Cloud struct {
	Faults machine.Faults

	o    Options
	room *machine.Room
	http http.Handler

	mu     sync.Mutex
	jobs   map[string]*job
	order  []*job // as they were created
	starts map[string]int
	tokens float64 // of calls that may come now
	filled time.Time
	closed bool
	wait   sync.WaitGroup
}

// New makes a fake.
func New(o Options) (*Cloud, error) {
	if o.Dir == "" || o.Store == nil {
		return nil, errors.New("modelarts: Options.Dir and Options.Store must be set")
	}
	o.Project = cmp.Or(o.Project, "0f5181caba0024e72f89c0045e707b91")
	o.Access = cmp.Or(o.Access, "FAKEACCESSKEY")
	o.Secret = cmp.Or(o.Secret, rand.Text())
	o.Slots = cmp.Or(o.Slots, 16)
	o.Quota = cmp.Or(o.Quota, 200)
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	if o.Flavors == nil {
		o.Flavors = Flavors()
	}
	if o.Engines == nil {
		o.Engines = Engines()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	if err := os.MkdirAll(filepath.Join(o.Dir, "jobs"), 0o700); err != nil {
		return nil, err
	}
	o.Store.Allow(o.Access, o.Secret)
	c := &Cloud{o: o, room: machine.NewRoom(o.Slots), jobs: map[string]*job{}, starts: map[string]int{}}
	c.http = c.Faults.Wrap(http.HandlerFunc(c.serve))
	return c, nil
}

// Keys is the pair that requests must be signed with.
func (c *Cloud) Keys() (access, secret string) { return c.o.Access, c.o.Secret }

// Project is the ID of the one project there is.
func (c *Cloud) Project() string { return c.o.Project }

// ServeHTTP answers one request.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.http.ServeHTTP(w, r) }

// Close ends all jobs and waits for that.
func (c *Cloud) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, j := range c.order {
		j.end(0)
	}
	c.mu.Unlock()
	c.wait.Wait()
	return nil
}

// Summary is a job as tests see it.
type Summary struct{ ID, Name, Phase string }

// Jobs lists the jobs, in the order in which they were created.
func (c *Cloud) Jobs() []Summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Summary
	for _, j := range c.order {
		list = append(list, Summary{j.ID, j.Metadata.Name, j.status.Phase})
	}
	return list
}

// Starts counts how often programs of jobs with this name have begun to run.
func (c *Cloud) Starts(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts[name]
}

// Ran counts how often programs of all jobs there ever were have begun to run.
func (c *Cloud) Ran() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, starts := range c.starts {
		n += starts
	}
	return n
}

// Forget makes a job unknown, as if it had never been. It reports whether there was
// one; what it runs is ended.
func (c *Cloud) Forget(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[id]
	if j == nil {
		return false
	}
	c.remove(j)
	return true
}

// remove takes a job off the lists. c.mu is held.
func (c *Cloud) remove(j *job) {
	delete(c.jobs, j.ID)
	c.order = slices.DeleteFunc(c.order, func(o *job) bool { return o == j })
	j.gone = true
	j.end(0)
	if j.left {
		os.RemoveAll(j.dir)
	}
}

// Jump shows another phase of a job than it is in, until the job itself goes on to the next one.
func (c *Cloud) Jump(id, phase, secondary string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[id]
	if j == nil {
		return false
	}
	j.status.Phase, j.status.Secondary = phase, secondary
	return true
}

// Fill takes all places, so that jobs wait until release is called.
func (c *Cloud) Fill() (release func()) {
	place := c.room.Enter(c.o.Slots)
	return place.Leave
}

// newID makes a UUID, as jobs have.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return strings.ToLower(uuid(b))
}
