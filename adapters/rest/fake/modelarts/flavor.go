package modelarts

import (
	"net/http"
	"strconv"
)

// Flavor is a kind of machine that jobs run on.
type Flavor struct {
	ID, Name     string
	Cores        int
	MemoryMB     int // shown in GB where it is a whole number of them
	DiskGB       int
	Accelerators int
	Product      string // of the accelerators: "NVIDIA-V100", "Ascend-910"
	ProductMB    int    // memory of one
	Ascend       bool   // accelerators are NPUs, not GPUs
}

// Flavors are the ones that the API reference shows, one smaller, and one with NPUs.
func Flavors() []Flavor {
	return []Flavor{
		{ID: "modelarts.vm.cpu.1u", Name: "Computing CPU(1U) instance", Cores: 1, MemoryMB: 2 << 10, DiskGB: 50},
		{ID: "modelarts.vm.cpu.2u", Name: "Computing CPU(2U) instance", Cores: 2, MemoryMB: 8 << 10, DiskGB: 50},
		{ID: "modelarts.vm.cpu.8u", Name: "Computing CPU(8U) instance", Cores: 8, MemoryMB: 32 << 10, DiskGB: 50},
		{ID: "modelarts.p3.large.public", Name: "Computing GPU(V100) instance", Cores: 8, MemoryMB: 64 << 10, DiskGB: 500,
			Accelerators: 1, Product: "NVIDIA-V100", ProductMB: 32 << 10},
		{ID: "modelarts.kat1.xlarge", Name: "Computing NPU(Ascend 910) instance", Cores: 24, MemoryMB: 96 << 10, DiskGB: 500,
			Accelerators: 1, Product: "Ascend-910", ProductMB: 32 << 10, Ascend: true},
	}
}

func (f Flavor) kind() string {
	switch {
	case f.Ascend:
		return "Ascend"
	case f.Accelerators > 0:
		return "GPU"
	}
	return "CPU"
}

// detail is the flavor as a job's answer has it; the list has the disk's size as a number.
func (f Flavor) detail(listed bool) flavorDetail {
	d := flavorDetail{Type: f.kind(), Billing: billing{f.ID, 1}, Info: flavorInfo{
		MaxNum: 1, CPU: cpu{"x86", f.Cores}, Memory: size{f.MemoryMB, "MB"},
	}}
	if f.MemoryMB%1024 == 0 {
		d.Info.Memory = size{f.MemoryMB / 1024, "GB"}
	}
	if f.DiskGB > 0 {
		d.Info.Disk = textSize{strconv.Itoa(f.DiskGB), "GB"}
		if listed {
			d.Info.Disk = size{f.DiskGB, "GB"}
		}
	}
	memory := strconv.Itoa(f.ProductMB/1024) + "GB"
	switch {
	case f.Ascend:
		d.Info.NPU = &npu{strconv.Itoa(f.Accelerators), f.Product, memory}
	case f.Accelerators > 0:
		d.Info.GPU = &gpu{f.Accelerators, f.Product, memory}
	}
	return d
}

func (c *Cloud) flavor(id string) (Flavor, bool) {
	for _, f := range c.o.Flavors {
		if f.ID == id {
			return f, true
		}
	}
	return Flavor{}, false
}

func (c *Cloud) serveFlavors(_ http.ResponseWriter, r *http.Request, _ []byte) (int, any, error) {
	kind := r.URL.Query().Get("flavor_type")
	out := struct {
		Total   int            `json:"total_count"`
		Flavors []listedFlavor `json:"flavors"`
	}{Flavors: []listedFlavor{}}
	for _, f := range c.o.Flavors {
		if kind == "" || kind == f.kind() {
			out.Flavors = append(out.Flavors, listedFlavor{ID: f.ID, Name: f.Name, MaxNum: 1, flavorDetail: f.detail(true)})
		}
	}
	out.Total = len(out.Flavors)
	return http.StatusOK, out, nil
}

// Engine is a framework that the service brings along.
type Engine struct {
	ID      string `json:"engine_id"`
	Name    string `json:"engine_name"`
	Version string `json:"engine_version"`
}

// Engines is one that stands for all: the fake runs boot files with python3.
func Engines() []Engine {
	return []Engine{{"pytorch_1.8.0-cuda_10.2-py_3.7-ubuntu_18.04-x86_64", "PyTorch", "pytorch_1.8.0-cuda_10.2-py_3.7-ubuntu_18.04-x86_64"}}
}

func (c *Cloud) hasEngine(e *engine) bool {
	for _, have := range c.o.Engines {
		if e.ID == have.ID || e.ID == "" && e.Name == have.Name && e.Version == have.Version {
			return true
		}
	}
	return false
}

func (c *Cloud) serveEngines(http.ResponseWriter, *http.Request, []byte) (int, any, error) {
	return http.StatusOK, map[string]any{"total": len(c.o.Engines), "items": c.o.Engines}, nil
}

func (c *Cloud) serveQuotas(http.ResponseWriter, *http.Request, []byte) (int, any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return http.StatusOK, map[string]any{"quotas": []any{
		map[string]any{"resource": "job-num", "quota": c.o.Quota, "used": c.living()},
	}}, nil
}

// living counts the jobs that have not ended. c.mu is held.
func (c *Cloud) living() (n int) {
	for _, j := range c.order {
		if !j.final() {
			n++
		}
	}
	return n
}
