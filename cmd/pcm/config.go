package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/multiformats/go-multiaddr"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/rules"
)

// Config is everything that can be set about a node. Each key can stand in the
// YAML file, and as PCM_KEY in the environment (nested keys joined by _, lists
// separated by commas); flags exist for the common ones. Flags win over the
// environment, which wins over the file. configs/pcm.example.yaml explains every key.
type Config struct {
	Data      string   `json:"data"`
	Name      string   `json:"name"`
	API       string   `json:"api"`
	APIHosts  []string `json:"api_hosts"`
	LogListen string   `json:"log_listen"`

	LedgerArchive string `json:"ledger_archive"` // folder

	Listen      []string             `json:"listen"`
	Announce    []string             `json:"announce"`
	Join        string               `json:"join"`
	Bootstrap   []string             `json:"bootstrap"`
	MDNS        bool                 `json:"mdns"`
	PortMap     bool                 `json:"port_map"`
	Labels      pcm.Labels           `json:"labels"`
	AccountKey  string               `json:"account_key"`
	CreditLimit Amount               `json:"credit_limit"`
	Classes     []string             `json:"classes"` // files
	Facts       map[string]PoolFacts `json:"facts"`   // by pool
	Rules       []rules.Rule         `json:"rules"`
	Adapters    Adapters             `json:"adapters"`
	Operations  Operations           `json:"operations"`
	Store       Store                `json:"store"`
	Cell        Cell                 `json:"cell"`
	Log         Log                  `json:"log"`
}

// Operations are what buyers may do with their running tasks here: all, own (this
// peer's account only) or off.
type Operations struct {
	Exec    string `json:"exec"`
	Copy    string `json:"copy"`
	Suspend string `json:"suspend"`
	Service string `json:"service"`
}

// Adapters are what this machine is sold through.
type Adapters struct {
	MaxOutput string    `json:"max_output"` // of one task
	Process   Process   `json:"process"`
	Wasm      Wasm      `json:"wasm"`
	Container Container `json:"container"`
	Slurm     Slurm     `json:"slurm"`

	Kubernetes Kubernetes `json:"kubernetes"`

	Described []Described `json:"described"`
	Plugins   []Plugin    `json:"plugins"`
}

// Process sells native processes.
type Process struct {
	Enabled          bool     `json:"enabled"`
	Sandbox          string   `json:"sandbox"` // auto, bubblewrap, landlock, none
	Network          bool     `json:"network"`
	Disk             string   `json:"disk"` // of one task's working folder
	AllowUnsandboxed bool     `json:"allow_unsandboxed"`
	Capacity         Capacity `json:"capacity"`
	Slots            int      `json:"slots"` // 0: by the machine's cores
	Price            Price    `json:"price"`
}

// Wasm sells WebAssembly.
type Wasm struct {
	Enabled  bool     `json:"enabled"`
	Capacity Capacity `json:"capacity"`
	Slots    int      `json:"slots"` // 0: by the machine's cores
	Price    Price    `json:"price"`
}

// Capacity is how much is sold; empty parts are the machine's.
type Capacity struct {
	CPU    string `json:"cpu"`
	Memory string `json:"memory"`
}

// Price in whole units.
type Price struct {
	Unit       string `json:"unit"`
	PerTask    Amount `json:"per_task"`
	PerCPUHour Amount `json:"per_cpu_hour"`
	PerGiBHour Amount `json:"per_gib_hour"`
	PerGPUHour Amount `json:"per_gpu_hour"`
}

// Store bounds the data that tasks read and write.
type Store struct {
	Quota   string `json:"quota"`
	Reserve string `json:"reserve"`
}

// Cell is how this peer takes part in its cell.
type Cell struct {
	Join          string `json:"join"`    // a cell's name or ID, or new:NAME; "": where the inviting peer sends this one
	Profile       string `json:"profile"` // lan, wan
	VoterEligible bool   `json:"voter_eligible"`
}

// Log is how the daemon logs.
type Log struct {
	Format string `json:"format"` // auto, text, json
	Level  string `json:"level"`  // debug, info, warn, error
}

// Amount is an amount of money in whole units, as written: "0.25".
type Amount string

// DefaultConfig is what a node is without any configuration. dataDir is where
// its data is.
func DefaultConfig(dataDir string) Config {
	price := Price{Unit: pcm.DefaultUnit, PerTask: "0.001", PerCPUHour: "1", PerGiBHour: "0.1", PerGPUHour: "10"}
	modules := price
	modules.PerGPUHour = "0" // they have no accelerators
	return Config{
		Data:        dataDir,
		API:         "127.0.0.1:7420",
		APIHosts:    []string{},
		Listen:      []string{"/ip4/127.0.0.1/udp/7419/quic-v1", "/ip4/127.0.0.1/tcp/7419"},
		Announce:    []string{},
		Bootstrap:   []string{},
		Labels:      pcm.Labels{},
		CreditLimit: "1000",
		Operations:  Operations{Exec: "all", Copy: "all", Suspend: "all", Service: "all"},
		Classes:     []string{},
		Facts:       map[string]PoolFacts{},
		Rules:       []rules.Rule{},
		Adapters: Adapters{
			MaxOutput: "1GiB",
			Process:   Process{Enabled: true, Sandbox: "auto", Disk: "10GiB", Price: price},
			Wasm:      Wasm{Enabled: true, Price: modules},
			Slurm:     Slurm{Partitions: []string{}, KeepEnv: []string{}, Price: price},
			Container: defaultContainer(price), Kubernetes: defaultKubernetes(price),
			Described: []Described{},
			Plugins:   []Plugin{},
		},
		Store: Store{Quota: "10GiB", Reserve: "512MiB"},
		Cell:  Cell{Profile: "lan", VoterEligible: true},
		Log:   Log{Format: "auto", Level: "info"},
	}
}

// defaultData is the data folder when none is named: $XDG_DATA_HOME/pcm, else ~/.pcm.
func defaultData(getenv func(string) string) string {
	if dir := getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "pcm")
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".pcm")
	}
	return ".pcm"
}

// complete makes what depends on this machine out of what was left empty.
func (c *Config) complete() error {
	abs, err := filepath.Abs(c.Data)
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "data folder %q: %w", c.Data, err)
	}
	c.Data = abs
	if c.Name == "" {
		host, _ := os.Hostname() // without one the peer is called "peer"
		c.Name = nameOf(host)
	}
	if c.AccountKey == "" {
		c.AccountKey = filepath.Join(c.Data, "account.key")
	}
	return nil
}

// nameOf makes a valid peer name of a host name.
func nameOf(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return '-'
		}
		return r
	}, host)
	name = strings.Trim(name[:min(len(name), 63)], "-")
	if name == "" {
		return "peer"
	}
	return name
}

// Validate finds what is wrong with a configuration; the first fault, a *pcm.FieldError.
func (c Config) Validate() error {
	checks := []struct {
		field string
		check func() error
	}{
		{"name", func() error {
			if !pcm.ValidName(c.Name) {
				return pcm.Errorf(pcm.Invalid, "%q is not a name of lower-case letters, digits, dots and dashes", c.Name)
			}
			return nil
		}},
		{"api", func() error { return checkAPI(c.API) }},
		{"log_listen", func() error {
			if c.LogListen == "" {
				return nil
			}
			return checkAPI(c.LogListen)
		}},
		{"ledger_archive", func() error { return checkArchive(c.LedgerArchive, c.Data) }},
		{"listen", func() error { return checkAddrs(c.Listen) }},
		{"announce", func() error { return checkAddrs(c.Announce) }},
		{"bootstrap", func() error { return checkAddrs(c.Bootstrap) }},
		{"join", func() error {
			if c.Join == "" {
				return nil
			}
			_, _, err := pcm.ParseToken(c.Join)
			return err
		}},
		{"labels", c.Labels.Validate},
		{"credit_limit", func() error { return checkAmount(c.CreditLimit) }},
		{"operations.exec", func() error { return oneOf(c.Operations.Exec, "all", "own", "off") }},
		{"operations.copy", func() error { return oneOf(c.Operations.Copy, "all", "own", "off") }},
		{"operations.suspend", func() error { return oneOf(c.Operations.Suspend, "all", "own", "off") }},
		{"operations.service", func() error { return oneOf(c.Operations.Service, "all", "own", "off") }},
		{"store.quota", func() error { return checkBytes(c.Store.Quota) }},
		{"store.reserve", func() error { return checkBytes(c.Store.Reserve) }},
		{"adapters.max_output", func() error { return checkBytes(c.Adapters.MaxOutput) }},
		{"adapters.process.disk", func() error { return checkBytes(c.Adapters.Process.Disk) }},
		{"adapters.process.sandbox", func() error { return oneOf(c.Adapters.Process.Sandbox, "auto", "bubblewrap", "landlock", "none") }},
		{"cell.join", func() error { return checkCellName(c.Cell.Join) }},
		{"cell.profile", func() error { return oneOf(c.Cell.Profile, "lan", "wan") }},
		{"log.format", func() error { return oneOf(c.Log.Format, "auto", "text", "json") }},
		{"log.level", func() error { return oneOf(c.Log.Level, "debug", "info", "warn", "error") }},
	}
	for _, k := range checks {
		if err := k.check(); err != nil {
			return &pcm.FieldError{Field: k.field, Err: err}
		}
	}
	p, w := c.Adapters.Process, c.Adapters.Wasm
	if err := validateSale("adapters.process", p.Capacity, p.Slots, p.Price); err != nil {
		return err
	}
	if err := validateSale("adapters.wasm", w.Capacity, w.Slots, w.Price); err != nil {
		return err
	}
	if err := c.Adapters.Kubernetes.validate(); err != nil {
		return err
	}
	if err := c.Adapters.Container.validate("adapters.container"); err != nil {
		return err
	}
	if err := validateDescribed(c.Adapters.Described, c.Adapters.Plugins); err != nil {
		return err
	}
	if err := validatePlugins(c.Adapters.Plugins); err != nil {
		return err
	}
	return c.Adapters.Slurm.validate()
}

// validateSale checks what all adapters have.
func validateSale(at string, capacity Capacity, slots int, price Price) error {
	checks := []struct {
		field string
		check func() error
	}{
		{"capacity", func() error { _, err := capacity.resources(); return err }},
		{"capacity.memory", func() error { r, _ := capacity.resources(); return r.CheckMemory() }},
		{"slots", func() error {
			if slots < 0 || slots > 1<<20 {
				return pcm.Errorf(pcm.Invalid, "%d is out of range: 0 (by the machine's cores) to %d", slots, 1<<20)
			}
			return nil
		}},
		{"price.per_task", func() error { return checkAmount(price.PerTask) }},
		{"price.per_cpu_hour", func() error { return checkAmount(price.PerCPUHour) }},
		{"price.per_gib_hour", func() error { return checkAmount(price.PerGiBHour) }},
		{"price.per_gpu_hour", func() error { return checkAmount(price.PerGPUHour) }},
		{"price", func() error { p, err := price.pcm(); return firstError(err, p.Validate()) }},
	}
	for _, k := range checks {
		if err := k.check(); err != nil {
			return &pcm.FieldError{Field: at + "." + k.field, Err: err}
		}
	}
	return nil
}

// resources reads the capacity; parts that are empty are 0: the machine's.
func (c Capacity) resources() (r pcm.Resources, err error) {
	if c.CPU != "" {
		if r.CPU, err = pcm.ParseMilliCPU(c.CPU); err != nil {
			return r, err
		}
	}
	if c.Memory != "" {
		r.Memory, err = pcm.ParseBytes(c.Memory)
	}
	return r, err
}

// pcm reads the price.
func (p Price) pcm() (pcm.Price, error) {
	v := pcm.Price{Unit: p.Unit}
	var errs [4]error
	v.PerTask, errs[0] = pcm.ParseMicro(string(p.PerTask))
	v.PerCPUHour, errs[1] = pcm.ParseMicro(string(p.PerCPUHour))
	v.PerGiBHour, errs[2] = pcm.ParseMicro(string(p.PerGiBHour))
	v.PerGPUHour, errs[3] = pcm.ParseMicro(string(p.PerGPUHour))
	return v, firstError(errs[:]...)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkAmount(a Amount) error {
	m, err := pcm.ParseMicro(string(a))
	if err == nil && m < 0 {
		return pcm.Errorf(pcm.Invalid, "%q is below zero", a)
	}
	return err
}

func checkBytes(s string) error {
	_, err := pcm.ParseBytes(s)
	return err
}

func checkAPI(addr string) error {
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return pcm.Errorf(pcm.Invalid, "%q is not an address of the form HOST:PORT, like 127.0.0.1:7420 (port 0: any free one)", addr)
	}
	return nil
}

func checkAddrs(addrs []string) error {
	for _, a := range addrs {
		if _, err := multiaddr.NewMultiaddr(a); err != nil {
			return pcm.Errorf(pcm.Invalid, "%q is not a multiaddr like /ip4/0.0.0.0/udp/7419/quic-v1 or /ip4/0.0.0.0/tcp/7419", a)
		}
	}
	return nil
}

func oneOf(v string, known ...string) error {
	if !slices.Contains(known, v) {
		return pcm.Errorf(pcm.Invalid, "%q is not one of %s", v, strings.Join(known, ", "))
	}
	return nil
}

// checkArchive checks the folder for records: a full path, as it has to be found again
// whatever folder the node is started in, and not where the node has its own files.
func checkArchive(dir, data string) error {
	if dir == "" {
		return nil
	}
	if !filepath.IsAbs(dir) {
		return pcm.Errorf(pcm.Invalid, "%q is not the full path of a folder, like /srv/pcm-archive", dir)
	}
	for _, own := range []string{"cell", "specs", "artifacts", "tasks", "cache", "checkpoints", "evidence", "recoveries", "audit"} {
		if rel, err := filepath.Rel(filepath.Join(data, own), dir); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return pcm.Errorf(pcm.Invalid, "%s is within a folder of the node's own: name another one", dir)
		}
	}
	return nil
}
