// Package openi is a fake AI training platform in the style of OpenI's Octopus:
// users log in for a bearer token, answers come in an envelope, lists are paged by
// index, states are numbers, and data goes in and out by URLs that the platform
// hands out. It really runs the jobs, as processes of this machine.
//
// From Octopus come the paths below /v1 (authmanage, resourcemanage, datasetmanage,
// trainmanage), the envelope {success, payload, error}, pageIndex and pageSize,
// the form of a train job with its config, resource specs with price and
// resourceQuantity, and that jobs are deleted in bulk. Octopus's states are words;
// other platforms of OpenI have numbers, and so has this one: the numbers are its
// own. Its own, too, are the calls for single files of data sets and of outputs,
// and for parts of the log: Octopus mounts storage and serves whole logs.
package openi

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// Bounds of what the platform keeps and takes.
const (
	maxBody     = 1 << 20
	maxFile     = 1 << 30
	maxJobs     = 20000
	maxDatasets = 20000
	maxTokens   = 1000
	maxPage     = 100
	maxLogPart  = 256 << 10
)

// Spec is a flavor: what a job's task gets, and what that costs in an hour.
type Spec struct {
	ID, Name string
	CPU      int   // cores
	Memory   int64 // bytes; a task that holds more is killed
	GPU      int
	GPUName  string // as the platform calls the accelerator, "nvidia.com/gpu"
	Price    string // of an hour
}

// DefaultImage is the one image that the platform has itself.
const DefaultImage = "image-ubuntu-22"

// Options sets a platform up. The zero value, with Dir, is a small one.
type Options struct {
	Dir                string // holds jobs and data; must be there
	Username, Password string // default "pcm" and "secret"
	Token              string // a token that is good for ever, if there is one
	TokenTTL           time.Duration
	Specs              []Spec
	CPU                int // cores of the one resource pool; default 8
	GPU                int
	Grace              time.Duration // between a stop and the kill; default 10 s
}

// Cloud is the platform.
type Cloud struct {
	o      Options
	Faults machine.Faults
	room   *machine.Room
	cards  *machine.Room
	mux    *http.ServeMux
	secret []byte // signs URLs

	mu       sync.Mutex
	tokens   map[string]time.Time // until when
	datasets map[string]*dataset
	jobs     map[string]*job
	order    []*job // oldest first
	starts   map[string]int
	closed   bool
	running  sync.WaitGroup
}

// New makes a platform.
func New(o Options) *Cloud {
	if o.Username == "" {
		o.Username, o.Password = "pcm", "secret"
	}
	if o.TokenTTL == 0 {
		o.TokenTTL = time.Hour
	}
	if o.CPU == 0 {
		o.CPU = 8
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.Specs == nil {
		o.Specs = []Spec{
			{ID: "spec-cpu-1", Name: "1 core, 2 GiB", CPU: 1, Memory: 2 << 30, Price: "0.5"},
			{ID: "spec-cpu-4", Name: "4 cores, 16 GiB", CPU: 4, Memory: 16 << 30, Price: "2"},
		}
		if o.GPU > 0 {
			o.Specs = append(o.Specs, Spec{ID: "spec-gpu-1", Name: "1 × A100, 4 cores, 32 GiB", CPU: 4, Memory: 32 << 30, GPU: 1, GPUName: "nvidia.com/gpu", Price: "12.5"})
		}
	}
	c := &Cloud{
		o: o, room: machine.NewRoom(o.CPU), cards: machine.NewRoom(o.GPU), secret: make([]byte, 32),
		tokens: map[string]time.Time{}, datasets: map[string]*dataset{}, jobs: map[string]*job{}, starts: map[string]int{},
	}
	_, _ = rand.Read(c.secret)
	c.mux = c.routes()
	return c
}

// Close kills what runs and waits for it.
func (c *Cloud) Close() {
	c.mu.Lock()
	c.closed = true
	for _, j := range c.order {
		j.kill()
	}
	c.mu.Unlock()
	c.running.Wait()
}

// Left names the jobs and data sets that there are.
func (c *Cloud) Left() (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range c.order {
		names = append(names, "job "+j.in.Name)
	}
	for _, d := range c.datasets {
		names = append(names, "data set "+d.Name)
	}
	return names
}

// LogOut forgets all tokens but the one that is good for ever, as a restart does.
func (c *Cloud) LogOut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.tokens)
}

func (c *Cloud) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/authmanage/token", c.logIn)
	for pattern, f := range map[string]func(*http.Request) (any, error){
		"GET /v1/resourcemanage/resourcespec":       c.listSpecs,
		"GET /v1/resourcemanage/resourcepool":       c.listPools,
		"GET /v1/imagemanage/image":                 c.listImages,
		"POST /v1/datasetmanage/dataset":            c.createDataset,
		"GET /v1/datasetmanage/dataset":             c.listDatasets,
		"POST /v1/datasetmanage/dataset/{id}/file":  c.uploadURL,
		"DELETE /v1/datasetmanage/dataset/{id}":     c.deleteDataset,
		"POST /v1/trainmanage/trainjob":             c.createJob,
		"GET /v1/trainmanage/trainjob":              c.listJobs,
		"DELETE /v1/trainmanage/trainjob":           c.deleteJobs,
		"GET /v1/trainmanage/trainjob/{id}":         c.showJob,
		"POST /v1/trainmanage/trainjob/{id}/stop":   c.stopJob,
		"GET /v1/trainmanage/trainjob/{id}/log":     c.jobLog,
		"GET /v1/trainmanage/trainjob/{id}/output":  c.jobOutput,
		"POST /v1/trainmanage/trainjob/{id}/output": c.outputURL,
	} {
		mux.HandleFunc(pattern, c.call(f))
	}
	mux.HandleFunc("PUT /data/{place}/{id}/{path...}", c.putFile)
	mux.HandleFunc("GET /data/{place}/{id}/{path...}", c.getFile)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, &failure{http.StatusNotFound, codeNotFound, "no such call: " + r.Method + " " + r.URL.Path})
	})
	return mux
}

// ServeHTTP implements [http.Handler].
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.Faults.Wrap(c.mux).ServeHTTP(w, r)
}

// The platform's codes of errors.
const (
	codeInvalid  = 11001
	codeLogIn    = 11002
	codeToken    = 11003
	codeNotFound = 11004
	codeState    = 11005
	codeFull     = 11006
	codeInternal = 11099
)

// failure is an error as the platform tells it.
type failure struct {
	status  int
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (f *failure) Error() string { return f.Message }

func invalid(message string) error {
	return &failure{http.StatusBadRequest, codeInvalid, message}
}

func notFound(what string) error {
	return &failure{http.StatusNotFound, codeNotFound, what + " doesn't exist"}
}

// answer writes the envelope.
func answer(w http.ResponseWriter, payload any, err error) {
	var f *failure
	status := http.StatusOK
	if err != nil && !errors.As(err, &f) {
		f = &failure{http.StatusInternalServerError, codeInternal, err.Error()}
	}
	if f != nil {
		status = f.status
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"success": f == nil, "payload": payload, "error": f})
}

// call is a call for those who have logged in.
func (c *Cloud) call(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !c.known(r.Header.Get("Authorization")) {
			answer(w, nil, &failure{http.StatusUnauthorized, codeToken, "the token is invalid or has expired: log in again"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		payload, err := f(r)
		answer(w, payload, err)
	}
}

func (c *Cloud) known(header string) bool {
	const scheme = "Bearer "
	if len(header) <= len(scheme) || header[:len(scheme)] != scheme {
		return false
	}
	token := header[len(scheme):]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.o.Token != "" && token == c.o.Token || time.Now().Before(c.tokens[token])
}

func (c *Cloud) logIn(w http.ResponseWriter, r *http.Request) {
	var in struct{ Username, Password string }
	if err := decode(r, &in); err != nil {
		answer(w, nil, err)
		return
	}
	if in.Username != c.o.Username || in.Password != c.o.Password {
		answer(w, nil, &failure{http.StatusUnauthorized, codeLogIn, "the user doesn't exist, or the password is wrong"})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for token, until := range c.tokens {
		if now.After(until) {
			delete(c.tokens, token)
		}
	}
	if len(c.tokens) >= maxTokens {
		answer(w, nil, &failure{http.StatusTooManyRequests, codeFull, "too many sessions"})
		return
	}
	token, until := newID(), now.Add(c.o.TokenTTL)
	c.tokens[token] = until
	answer(w, map[string]any{"token": token, "expiration": int64(c.o.TokenTTL / time.Second)}, nil)
}

// decode reads a request's body.
func decode(r *http.Request, into any) error {
	err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(into)
	if err != nil && !errors.Is(err, io.EOF) {
		return invalid("the body is no JSON of the right form: " + err.Error())
	}
	return nil
}

// page is the part of a list that was asked for: pages begin with 1.
func page[T any](r *http.Request, all []T) ([]T, error) {
	index, err1 := number(r, "pageIndex", 1)
	size, err2 := number(r, "pageSize", 10)
	if err := errors.Join(err1, err2); err != nil || index < 1 || size < 1 || size > maxPage {
		return nil, invalid("pageIndex begins with 1, pageSize is 1 to " + strconv.Itoa(maxPage))
	}
	from := min((index-1)*size, len(all))
	return all[from:min(from+size, len(all))], nil
}

func number(r *http.Request, name string, otherwise int) (int, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 1<<40 {
		return 0, invalid(name + " is no number: " + s)
	}
	return n, nil
}

func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// gib is a quantity as Kubernetes has it.
func gib(bytes int64) string {
	if bytes%(1<<30) == 0 {
		return strconv.FormatInt(bytes>>30, 10) + "Gi"
	}
	return strconv.FormatInt(bytes>>20, 10) + "Mi"
}

func (s Spec) quantity() map[string]string {
	q := map[string]string{"cpu": strconv.Itoa(s.CPU), "memory": gib(s.Memory)}
	if s.GPU > 0 {
		q[s.GPUName] = strconv.Itoa(s.GPU)
	}
	return q
}

func (c *Cloud) listSpecs(r *http.Request) (any, error) {
	part, err := page(r, c.o.Specs)
	if err != nil {
		return nil, err
	}
	list := []map[string]any{}
	for _, s := range part {
		list = append(list, map[string]any{"id": s.ID, "name": s.Name, "price": s.Price, "resourceQuantity": s.quantity()})
	}
	return map[string]any{"totalSize": len(c.o.Specs), "resourceSpecs": list}, nil
}

func (c *Cloud) listImages(*http.Request) (any, error) {
	return map[string]any{"totalSize": 1, "images": []map[string]any{
		{"id": DefaultImage, "imageName": "ubuntu", "imageVersion": "22.04", "imageAddr": "registry.invalid/ubuntu:22.04"},
	}}, nil
}

// listPools tells of the one pool: what it has, and what jobs hold of it.
func (c *Cloud) listPools(*http.Request) (any, error) {
	all, taken := c.room.Use()
	cards, busy := c.cards.Use()
	capacity, allocated := map[string]string{"cpu": strconv.Itoa(all)}, map[string]string{"cpu": strconv.Itoa(taken)}
	if cards > 0 {
		capacity["nvidia.com/gpu"], allocated["nvidia.com/gpu"] = strconv.Itoa(cards), strconv.Itoa(busy)
	}
	return map[string]any{"resourcePools": []map[string]any{
		{"id": "common-pool", "name": "common-pool", "capacity": capacity, "allocated": allocated},
	}}, nil
}
