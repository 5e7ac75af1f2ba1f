package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node"
)

// PoolFacts are what a back end doesn't tell of a pool.
type PoolFacts struct {
	Class       string   `json:"class"`       // as which the pool is offered
	Accelerator string   `json:"accelerator"` // a name that 'pcm class list' shows
	Software    []string `json:"software"`    // "cuda 12.4"
	Bandwidth   string   `json:"bandwidth"`   // of one machine
	Fabric      string   `json:"fabric"`
	Disk        string   `json:"disk"`
}

// facts reads them. The error is a *pcm.FieldError.
func (f PoolFacts) facts() (n node.Facts, err error) {
	bad := func(field string, err error) (node.Facts, error) { return n, &pcm.FieldError{Field: field, Err: err} }
	if n.Class = f.Class; f.Class != "" && !pcm.ValidName(f.Class) {
		return bad("class", pcm.Errorf(pcm.Invalid, "%.40q is not a name of lower-case letters, digits, dots and dashes", f.Class))
	}
	if f.Accelerator != "" {
		k, ok := pcm.FindAccelerator(f.Accelerator)
		if !ok {
			var names []string
			for _, k := range pcm.KnownAccelerators() {
				names = append(names, k.Name)
			}
			return bad("accelerator", pcm.Errorf(pcm.Invalid, "no accelerator is called %.40q%s; add yours in a file that classes names", f.Accelerator, didYouMean(f.Accelerator, names)))
		}
		n.Accelerator = &k.Accelerator
	}
	for _, s := range f.Software {
		if n.Software == nil {
			n.Software = pcm.Software{}
		}
		name, version, _ := strings.Cut(strings.TrimSpace(s), " ")
		n.Software[name] = strings.TrimSpace(version)
	}
	if err := n.Software.Validate(); err != nil {
		return bad("software", err)
	}
	if f.Bandwidth != "" || f.Fabric != "" {
		n.Network = &pcm.Network{Fabric: f.Fabric}
		if f.Bandwidth != "" {
			if n.Network.Bandwidth, err = pcm.ParseBitRate(f.Bandwidth); err != nil {
				return bad("bandwidth", err)
			}
		}
		if err := n.Network.Validate(); err != nil {
			return bad("fabric", err)
		}
	}
	if f.Disk != "" {
		if n.Disk, err = pcm.ParseBytes(f.Disk); err != nil {
			return bad("disk", err)
		}
	}
	return n, nil
}

// poolFacts reads those of all pools.
func (c Config) poolFacts() (map[pcm.PoolID]node.Facts, error) {
	all := map[pcm.PoolID]node.Facts{}
	for _, id := range slices.Sorted(maps.Keys(c.Facts)) {
		if !pcm.ValidName(id) {
			return nil, &pcm.FieldError{Field: "facts." + id, Err: pcm.Errorf(pcm.Invalid, "%.40q is not the name of a pool", id)}
		}
		f, err := c.Facts[id].facts()
		if err != nil {
			fe := err.(*pcm.FieldError)
			return nil, &pcm.FieldError{Field: "facts." + id + "." + fe.Field, Err: fe.Err}
		}
		all[pcm.PoolID(id)] = f
	}
	return all, nil
}

// addClasses makes the classes known that files of this peer's own define. Names
// are relative to base.
func addClasses(files []string, base string) error {
	for _, name := range files {
		if !filepath.IsAbs(name) {
			name = filepath.Join(base, name)
		}
		raw, err := readBounded(name)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "classes: can't read the file: %w", err)
		}
		if err := pcm.AddClasses(raw, name); err != nil {
			return err
		}
	}
	return nil
}

// ownClasses makes the classes known that the configuration of this machine's node
// names, for commands that read them without asking the node.
func (a *app) ownClasses() error {
	file := a.getenv("PCM_CONFIG")
	dir, _ := a.dataDir()
	if file == "" {
		file = filepath.Join(dir, "config.yaml")
		if _, err := os.Stat(file); err != nil {
			return nil // a node without a file, or none at all
		}
	}
	raw, err := readBounded(file)
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "can't read the configuration: %w", err)
	}
	c := DefaultConfig(dir)
	if _, err := decodeConfig(raw, file, &c); err != nil {
		return err
	}
	return addClasses(c.Classes, filepath.Dir(file))
}
