package main

import (
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/container"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/node"
)

// Container sells containers of an engine on this machine.
type Container struct {
	Enabled      bool     `json:"enabled"`
	Socket       string   `json:"socket"`
	DefaultImage string   `json:"default_image"`
	Images       []string `json:"images"`
	Pull         string   `json:"pull"` // missing, always, never
	Auth         string   `json:"auth"` // path of a file
	User         string   `json:"user"`
	Network      string   `json:"network"`
	Runtime      string   `json:"runtime"`
	PIDs         int      `json:"pids"`
	Tmp          string   `json:"tmp"`
	Disk         string   `json:"disk"`
	GPUs         []string `json:"gpus"`
	GPUDevices   []string `json:"gpu_devices"`
	OwnOnly      bool     `json:"own_only"`
	Capacity     Capacity `json:"capacity"`
	Slots        int      `json:"slots"` // 0: by the engine's cores
	Price        Price    `json:"price"`
}

func defaultContainer(price Price) Container {
	return Container{
		Socket: container.DefaultSocket, Images: []string{}, Pull: container.PullMissing, PIDs: 1024, Tmp: "64MiB", Disk: "10GiB",
		GPUs: []string{}, GPUDevices: []string{}, Price: price,
	}
}

// validate checks what can be checked without the engine. at is the section's name.
func (c Container) validate(at string) error {
	checks := []struct {
		field string
		check func() error
	}{
		{"pull", func() error { return oneOf(c.Pull, container.PullMissing, container.PullAlways, container.PullNever) }},
		{"tmp", func() error { return checkBytes(c.Tmp) }},
		{"disk", func() error { return checkBytes(c.Disk) }},
		{"pids", func() error {
			if c.PIDs < 1 || c.PIDs > 1<<22 {
				return pcm.Errorf(pcm.Invalid, "%d is out of range: 1 to %d", c.PIDs, 1<<22)
			}
			return nil
		}},
		{"images", func() error {
			if c.Enabled && c.DefaultImage == "" && len(c.Images) == 0 {
				return pcm.Errorf(pcm.Invalid, "no image may run: set default_image, or list images that tasks may name, like docker.io/library/*")
			}
			return nil
		}},
		{"", func() error { // the others, as their user checks them
			r, err := c.runner()
			if err != nil {
				return err
			}
			_, err = container.NewRunner(r)
			return err
		}},
	}
	for _, k := range checks {
		if err := k.check(); err != nil {
			return &pcm.FieldError{Field: strings.TrimSuffix(at+"."+k.field, "."), Err: err}
		}
	}
	return validateSale(at, c.Capacity, c.Slots, c.Price)
}

// runner is what the supervisor is told.
func (c Container) runner() (r container.RunnerConfig, err error) {
	tmp, err := pcm.ParseBytes(c.Tmp)
	if err != nil {
		return r, err
	}
	disk, err := pcm.ParseBytes(c.Disk)
	if err != nil {
		return r, err
	}
	return container.RunnerConfig{
		Socket: c.Socket, DefaultImage: c.DefaultImage, Images: c.Images, Pull: c.Pull, Auth: c.Auth, User: c.User, Network: c.Network,
		Runtime: c.Runtime, PIDs: c.PIDs, Tmp: tmp, Disk: disk, GPUs: c.GPUs, GPUDevices: c.GPUDevices,
	}, nil
}

// sale makes the adapter; dir is the supervisor's folder.
func (c Container) sale(dir string, client *supervisor.Client) (s node.Sale, err error) {
	r, err := c.runner()
	if err != nil {
		return s, err
	}
	r.Dir = dir
	capacity, err := c.Capacity.resources()
	if err != nil {
		return s, err
	}
	if s.Price, err = c.Price.pcm(); err != nil {
		return s, err
	}
	s.Adapter, err = container.New(container.Config{Runner: r, Capacity: capacity, Slots: c.Slots, OwnOnly: c.OwnOnly}, client)
	return s, err
}
