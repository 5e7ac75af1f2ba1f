package slurm

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Name is the name of the adapter and its runner. Its pools are called
// slurm-PARTITION.
const Name = "slurm"

// Config says how a cluster is reached and what of it is sold. Daemon and
// supervisor are given the same one; it holds no secret.
type Config struct {
	Dir    string `json:"dir"`              // the supervisor's folder, as in supervisor.Config
	Shared string `json:"shared,omitempty"` // folder that login and compute nodes see under this path; "": Dir is such a one

	URL       string `json:"url,omitempty"`        // of slurmrestd; "": Slurm's commands are used
	User      string `json:"user,omitempty"`       // for slurmrestd; default: the user that runs this
	TokenFile string `json:"token_file,omitempty"` // the JWT; read again when it is refused
	TokenEnv  string `json:"token_env,omitempty"`  // variable with the JWT, where there is no file

	Commands string `json:"commands,omitempty"` // folder of sbatch and the others; "": PATH
	Conf     string `json:"conf,omitempty"`     // SLURM_CONF; "": Slurm's own default

	Partitions  []string   `json:"partitions,omitempty"` // to sell; none: all that are up
	Account     string     `json:"account,omitempty"`    // all of these as sbatch knows them
	QOS         string     `json:"qos,omitempty"`
	Constraint  string     `json:"constraint,omitempty"`
	Reservation string     `json:"reservation,omitempty"`
	KeepEnv     []string   `json:"keep_env,omitempty"`     // variables of the batch job that tasks see too, e.g. SLURM_JOB_ID
	AllowOthers bool       `json:"allow_others,omitempty"` // sell to other accounts: their tasks run as our user
	Slots       int        `json:"slots,omitempty"`        // attempts in a pool at once; default 1,000
	Labels      pcm.Labels `json:"labels,omitempty"`

	Timeout time.Duration `json:"timeout,omitempty"` // of one command or request; default 10 s
}

var (
	plainWord = regexp.MustCompile(`^[A-Za-z0-9_.:@,&|*()\[\]!=+-]{1,255}$`)
	variable  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// Validate finds what is wrong with it.
func (c Config) Validate() error {
	for _, p := range []struct{ what, path string }{{"shared folder", c.Shared}, {"token file", c.TokenFile}, {"folder of commands", c.Commands}, {"slurm.conf", c.Conf}} {
		if p.path != "" && (!filepath.IsAbs(p.path) || strings.ContainsAny(p.path, "\n\x00")) {
			return pcm.Errorf(pcm.Invalid, "slurm: %s %q is not an absolute path", p.what, p.path)
		}
	}
	if c.URL != "" && !strings.HasPrefix(c.URL, "http://") && !strings.HasPrefix(c.URL, "https://") && !strings.HasPrefix(c.URL, "unix:///") {
		return pcm.Errorf(pcm.Invalid, "slurm: %q is not the address of a slurmrestd: http://HOST:PORT, https://HOST:PORT or unix:///SOCKET", c.URL)
	}
	if c.URL != "" && c.TokenFile == "" && c.TokenEnv == "" && !strings.HasPrefix(c.URL, "unix://") {
		return pcm.Errorf(pcm.Invalid, "slurm: slurmrestd needs a token: name the file, or the variable, that holds the JWT")
	}
	for _, w := range append([]string{c.Account, c.QOS, c.Constraint, c.Reservation, c.User}, c.Partitions...) {
		if w != "" && (!plainWord.MatchString(w) || w[0] == '-') {
			return pcm.Errorf(pcm.Invalid, "slurm: %q is not a name that Slurm knows", w)
		}
	}
	for _, v := range c.KeepEnv {
		if !variable.MatchString(v) {
			return pcm.Errorf(pcm.Invalid, "slurm: %q is not the name of a variable", v)
		}
	}
	if c.Slots < 0 || c.Slots > 1<<20 {
		return pcm.Errorf(pcm.Invalid, "slurm: %d slots are out of range: 0 (1,000) to %d", c.Slots, 1<<20)
	}
	if c.Timeout < 0 || c.Timeout > 10*time.Minute {
		return pcm.Errorf(pcm.Invalid, "slurm: a timeout of %s is out of range: up to 10 minutes", c.Timeout)
	}
	return c.Labels.Validate()
}

func (c *Config) defaults() {
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Slots <= 0 {
		c.Slots = 1000
	}
}

// root is the folder that login and compute nodes share.
func (c Config) root() string {
	if c.Shared != "" {
		return c.Shared
	}
	return filepath.Join(c.Dir, "slurm")
}

// sold tells whether a partition is.
func (c Config) sold(partition string) bool {
	return len(c.Partitions) == 0 || slices.Contains(c.Partitions, partition)
}

// poolID names the pool of a partition, or of one GPU type in it.
func poolID(partition, gpu string) pcm.PoolID {
	name := Name + "-" + clean(partition)
	if gpu != "" {
		name += "." + clean(gpu)
	}
	return pcm.PoolID(strings.TrimRight(name[:min(len(name), 63)], "-."))
}

// clean makes a part of a name out of what Slurm calls something.
func clean(s string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, s), "-")
}
