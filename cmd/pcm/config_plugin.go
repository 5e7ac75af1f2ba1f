package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/plugin"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/node"
)

// Plugin sells what an adapter of somebody's own runs tasks on.
type Plugin struct {
	Name        string            `json:"name"`
	Command     []string          `json:"command"`
	User        string            `json:"user"` // empty: this node's own
	Settings    map[string]string `json:"settings"`
	Secrets     map[string]string `json:"secrets"` // env:NAME or file:PATH
	AllowOthers bool              `json:"allow_others"`
	Price       Price             `json:"price"`
}

// maxPlugins bounds how many plug-ins one node runs.
const maxPlugins = 16

// config is what daemon and supervisor both need of it.
func (p Plugin) config(dir, instance, version string) (plugin.Config, error) {
	settings, err := json.Marshal(p.Settings)
	if err != nil {
		return plugin.Config{}, pcm.Errorf(pcm.Internal, "can't encode the settings of plug-in %s: %w", p.Name, err)
	}
	if len(p.Settings) == 0 {
		settings = nil
	}
	return plugin.Config{Name: p.Name, Command: p.Command, User: p.User, Settings: settings, Secrets: p.Secrets, Dir: dir, Instance: instance, Version: version}, nil
}

// filled is the price with what was left out: nothing is what all that cost nothing.
func (p Plugin) filled() Price {
	price := p.Price
	price.Unit = cmp.Or(price.Unit, pcm.DefaultUnit)
	for _, amount := range []*Amount{&price.PerTask, &price.PerCPUHour, &price.PerGiBHour, &price.PerGPUHour} {
		*amount = cmp.Or(*amount, "0")
	}
	return price
}

func validatePlugins(list []Plugin) error {
	if len(list) > maxPlugins {
		return &pcm.FieldError{Field: "adapters.plugins", Err: pcm.Errorf(pcm.Invalid, "%d plug-ins are too many: at most %d", len(list), maxPlugins)}
	}
	var names []string
	for i, p := range list {
		at := fmt.Sprintf("adapters.plugins[%d]", i)
		c, err := p.config("/", "i-0", "")
		if err == nil {
			err = c.Validate()
		}
		if fault, ok := err.(*pcm.FieldError); ok {
			return &pcm.FieldError{Field: at + "." + fault.Field, Err: fault.Err}
		}
		if err != nil {
			return &pcm.FieldError{Field: at, Err: err}
		}
		if slices.Contains(names, p.Name) {
			return &pcm.FieldError{Field: at + ".name", Err: pcm.Errorf(pcm.Invalid, "two plug-ins are named %s", p.Name)}
		}
		names = append(names, p.Name)
		if err := validateSale(at, Capacity{}, 0, p.filled()); err != nil {
			return err
		}
	}
	return nil
}

// pluginSales are the daemon's sides of all plug-ins.
func pluginSales(list []Plugin, dir, instance, version string, client *supervisor.Client, log *slog.Logger) ([]node.Sale, error) {
	var sales []node.Sale
	for _, p := range list {
		price, err := p.filled().pcm()
		if err != nil {
			return nil, err
		}
		c, err := p.config(dir, instance, version)
		if err != nil {
			return nil, err
		}
		c.Logger = log
		a, err := plugin.New(c, p.AllowOthers, client)
		if err != nil {
			return nil, err
		}
		sales = append(sales, node.Sale{Price: price, Adapter: a})
	}
	return sales, nil
}

// pluginRunners are the supervisor's sides. One that can't be made doesn't keep the others from running.
func pluginRunners(list []plugin.Config, dir string, log *slog.Logger) []supervisor.Runner {
	var runners []supervisor.Runner
	for _, c := range list {
		c.Dir, c.Logger = dir, log
		r, err := plugin.NewRunner(c)
		if err != nil {
			log.Error("a plug-in is left out", "plugin", c.Name, "err", err)
			continue
		}
		runners = append(runners, r)
	}
	return runners
}

// pluginSettings are what the supervisor is told, and the variables that it needs for that.
func pluginSettings(list []Plugin, dir, instance, version string) (configs []plugin.Config, environ []string, err error) {
	for _, p := range list {
		c, err := p.config(dir, instance, version)
		if err != nil {
			return nil, nil, err
		}
		configs = append(configs, c)
		environ = append(environ, c.Environ(os.Getenv)...)
	}
	return configs, environ, nil
}
