package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest"
)

// trySite is what a site says of back ends that are tried: by flags, or by a node's configuration.
type trySite struct {
	set, secret  []string
	allowPrivate bool
	ca           string
	file         string // of the configuration
}

func (s *trySite) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&s.set, "set", nil, "a setting, `NAME=VALUE`; may be given several times")
	f.StringArrayVar(&s.secret, "secret", nil, "where a secret is, `NAME=REFERENCE`: env:VARIABLE or file:/PATH; may be given several times")
	f.BoolVar(&s.allowPrivate, "allow-private", false, "allow loopback, link-local and private addresses")
	f.StringVar(&s.ca, "ca", "", "`FILE` with certificates to believe beside the system's")
	f.StringVar(&s.file, "config", "", "configuration `FILE` of the node (PCM_CONFIG; default config.yaml in the data folder)")
}

func pairs(flag string, list []string) (map[string]string, error) {
	all := map[string]string{}
	for _, p := range list {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, pcm.Errorf(pcm.Invalid, "%s has no NAME= before its value", flag)
		}
		all[k] = v
	}
	return all, nil
}

// config makes the configuration of a description; done deletes what was made for it.
func (s *trySite) config(d described) (cfg rest.Config, done func(), err error) {
	cfg = rest.Config{AllowPrivate: s.allowPrivate, CA: s.ca}
	if cfg.Settings, err = pairs("--set", s.set); err != nil {
		return cfg, func() {}, err
	}
	if cfg.Secrets, err = pairs("--secret", s.secret); err != nil {
		return cfg, func() {}, err
	}
	return tried(cfg, d)
}

// tried puts a description where its configuration can name it.
func tried(cfg rest.Config, d described) (_ rest.Config, done func(), err error) {
	done = func() {}
	dir, err := os.MkdirTemp("", "pcm-try-")
	if err != nil {
		return cfg, done, pcm.Errorf(pcm.Internal, "can't make a folder: %w", err)
	}
	done = func() { os.RemoveAll(dir) }
	cfg.Instance, cfg.Dir, cfg.File = "try", dir, d.file // a name of its own: the node takes none of its jobs for one of its own
	if d.dir == "" || d.file == "standard input" {
		cfg.File = filepath.Join(dir, "adapter.yaml")
		if err := os.WriteFile(cfg.File, d.text, 0o600); err != nil {
			return cfg, done, pcm.Errorf(pcm.Internal, "can't keep the description: %w", err)
		}
	}
	return cfg, done, nil
}

// configured is the described adapter that the node's configuration calls so.
func (a *app) configured(file, name string) (cfg rest.Config, d described, err error) {
	if file == "" {
		file = a.getenv("PCM_CONFIG")
	}
	dir, named := a.dataDir()
	if !named {
		dir = ""
	}
	c, err := loadConfig(file, dir, a.getenv, func(*Config) {})
	if err != nil {
		return cfg, d, err
	}
	var names []string
	for _, entry := range c.Adapters.Described {
		parsed, from, err := entry.read()
		if err != nil {
			return cfg, d, err
		}
		own := cmp.Or(entry.Name, parsed.Name)
		if own != name {
			names = append(names, own)
			continue
		}
		cfg, err := entry.config("", "")
		return cfg, from, err
	}
	where := cmp.Or(file, filepath.Join(c.Data, "config.yaml"))
	if len(names) == 0 {
		return cfg, d, pcm.Errorf(pcm.NotFound, "%s has no described adapters: name them under adapters.described", where)
	}
	return cfg, d, pcm.Errorf(pcm.NotFound, "%s has no described adapter %q%s", where, name, cmp.Or(didYouMean(name, names), "; it has "+strings.Join(names, ", ")))
}

// wanted words what is missing as flags, all of it at once. before stands before each name.
func wanted(err error, before string) error {
	m, ok := errors.AsType[*rest.Missing](err)
	if !ok {
		return err
	}
	var rows [][2]string
	for _, n := range m.Settings {
		about := n.About
		if n.Example != "" {
			about += ", e.g. " + n.Example
		}
		rows = append(rows, [2]string{"--set " + before + n.Name + "=…", about})
	}
	for _, n := range m.Secrets {
		rows = append(rows, [2]string{"--secret " + before + n.Name + "=env:VARIABLE", n.About + " (or file:/PATH)"})
	}
	wide := 0
	for _, r := range rows {
		wide = max(wide, len([]rune(r[0])))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s needs more:", m.Name)
	for _, r := range rows {
		fmt.Fprintf(&b, "\n  %s%s  %s", r[0], strings.Repeat(" ", wide-len([]rune(r[0]))), plain(oneLine(r[1])))
	}
	return pcm.Errorf(pcm.Invalid, "%s", b.String())
}
