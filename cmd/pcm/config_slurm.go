package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/slurm"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/node"
)

// Slurm sells partitions of a Slurm cluster.
type Slurm struct {
	Enabled      bool     `json:"enabled"`
	URL          string   `json:"url"` // of slurmrestd; empty: Slurm's commands
	User         string   `json:"user"`
	TokenFile    string   `json:"token_file"`
	TokenEnv     string   `json:"token_env"`
	Commands     string   `json:"commands"`
	Conf         string   `json:"conf"`
	SharedFolder string   `json:"shared_folder"`
	Partitions   []string `json:"partitions"`
	Account      string   `json:"account"`
	QOS          string   `json:"qos"`
	Constraint   string   `json:"constraint"`
	Reservation  string   `json:"reservation"`
	KeepEnv      []string `json:"keep_env"`
	AllowOthers  bool     `json:"allow_others"`
	Slots        int      `json:"slots"` // of each partition; 0: 1,000
	Price        Price    `json:"price"`
}

// settings is what daemon and supervisor both need of it. In the shared folder
// each node has one of its own: what is in it is that node's to delete.
func (s Slurm) settings(data, instance string) slurm.Config {
	shared := s.SharedFolder
	if shared != "" {
		shared = strings.TrimSuffix(shared, "/") + "/pcm-" + instance // not cleaned: Validate sees what was given
	}
	return slurm.Config{
		Dir: filepath.Join(data, "tasks"), Shared: shared, URL: s.URL, User: s.User, TokenFile: s.TokenFile, TokenEnv: s.TokenEnv,
		Commands: s.Commands, Conf: s.Conf, Partitions: s.Partitions, Account: s.Account, QOS: s.QOS, Constraint: s.Constraint,
		Reservation: s.Reservation, KeepEnv: s.KeepEnv, AllowOthers: s.AllowOthers, Slots: s.Slots,
	}
}

func (s Slurm) validate() error {
	if s.Enabled {
		if err := s.settings("/", "i-0").Validate(); err != nil {
			return &pcm.FieldError{Field: "adapters.slurm", Err: err}
		}
	}
	return validateSale("adapters.slurm", Capacity{}, s.Slots, s.Price)
}

// environ is what the supervisor needs of our environment.
func (s Slurm) environ() []string {
	if s.Enabled && s.TokenEnv != "" {
		return []string{s.TokenEnv + "=" + os.Getenv(s.TokenEnv)}
	}
	return nil
}

func (s Slurm) sale(data, instance string, client *supervisor.Client) (node.Sale, error) {
	price, err := s.Price.pcm()
	if err != nil {
		return node.Sale{}, err
	}
	a, err := slurm.New(s.settings(data, instance), client)
	return node.Sale{Price: price, Adapter: a}, err
}

// slurmRunner is the supervisor's side.
func slurmRunner(cfg *slurm.Config, log *slog.Logger) ([]supervisor.Runner, error) {
	if cfg == nil {
		return nil, nil
	}
	r, err := slurm.NewRunner(*cfg, log)
	if err != nil {
		return nil, err
	}
	return []supervisor.Runner{r}, nil
}
