package adapters

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Devices are like accelerators of this machine that its drivers have taken up.
type Devices struct {
	Accelerator pcm.Accelerator
	Each        []Device
	Shared      []string // device files that all who use any of them need
	ReadOnly    []string // and what of the system's files they read; those under /usr aside
	Variable    string   // of the environment, by which programs are told which they may use; "": there is none
}

// Device is one accelerator.
type Device struct {
	ID    string   // for the variable: an index or a UUID
	Nodes []string // its own device files; empty: Shared are all
}

// Machine is where accelerators are looked for; the zero value is this machine.
type Machine struct {
	Root string // in place of "/"
	// Run runs a vendor's tool and gives what it prints; nil runs those in PATH.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
}

// Bounds of detection: a tool that hangs, as with a broken driver, isn't waited
// for, and what it prints is read to a limit.
const (
	toolTime   = 5 * time.Second
	toolOutput = 1 << 20
	maxDevices = 1024
)

// DetectAccelerators finds the accelerators of a machine, most numerous kind first.
// Only those count that a driver has taken up: without one nobody can use them.
// What can't be read is passed over.
func DetectAccelerators(ctx context.Context, m Machine) []Devices {
	if m.Run == nil {
		m.Run = runTool
	}
	var all []Devices
	for _, find := range []func(Machine, context.Context) []found{Machine.nvidia, Machine.kfd, Machine.ascend, Machine.cambricon} {
		for _, f := range find(m, ctx) {
			i := slices.IndexFunc(all, func(d Devices) bool {
				return d.Accelerator.Name() == f.accelerator.Name() && d.Accelerator.Vendor == f.accelerator.Vendor
			})
			if i < 0 {
				i = len(all)
				all = append(all, Devices{Accelerator: f.accelerator, Shared: m.existing(f.shared...), ReadOnly: f.readOnly, Variable: f.variable})
			}
			if len(all[i].Each) < maxDevices {
				all[i].Each = append(all[i].Each, f.device)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Devices) int { return len(b.Each) - len(a.Each) })
	return all
}

type found struct {
	accelerator pcm.Accelerator
	device      Device
	shared      []string
	variable    string
	readOnly    []string
}

func runTool(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(pipe, toolOutput))
	cmd.Cancel() // what it has beyond that is not waited for
	if werr := cmd.Wait(); err == nil && len(out) == 0 {
		err = werr
	}
	return out, err
}

func (m Machine) path(p string) string { return filepath.Join(m.Root, "/", p) }

// glob lists the paths that match, as they are on the machine, in order.
func (m Machine) glob(pattern string) []string {
	list, _ := filepath.Glob(m.path(pattern)) // the patterns are well formed
	for i, p := range list {
		list[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(p, filepath.Clean(m.path("/"))), "/")
	}
	return list[:min(len(list), maxDevices)]
}

func (m Machine) existing(paths ...string) []string {
	var list []string
	for _, p := range paths {
		list = append(list, m.glob(p)...)
	}
	return list
}

// read gives the beginning of a small file; "" if it can't be read.
func (m Machine) read(path string) string {
	f, err := os.Open(m.path(path))
	if err != nil {
		return ""
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, 64<<10))
	return string(data)
}

// fields reads lines of a key and a value.
func fields(text, separator string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, separator); ok {
			all[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return all
}

var (
	smiGPU   = regexp.MustCompile(`^GPU (\d+): (.+) \(UUID: (GPU-[0-9a-fA-F-]+)\)`)
	smiMIG   = regexp.MustCompile(`^\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[0-9a-zA-Z/-]+)\)`)
	npuLine  = regexp.MustCompile(`^\|\s*(\d+)\s+([0-9A-Za-z]+)\s*\|\s*(?:OK|Warning|Alarm|Critical|UNKNOWN)`)
	lastNums = regexp.MustCompile(`\d+$`)
)

// nvidia asks nvidia-smi, which knows of slices as well, or reads what the driver
// tells. A GPU in slices is sold in these, not as a whole.
func (m Machine) nvidia(ctx context.Context) []found {
	infos := m.glob("/proc/driver/nvidia/gpus/*/information")
	if len(infos) == 0 {
		return nil // no driver: the tool would have nothing to tell
	}
	gpu := func(product, minor, id string) found {
		a, _ := AcceleratorOf(NameProduct, product)
		a.Vendor = "nvidia"
		return found{a, Device{id, m.existing("/dev/nvidia" + minor)}, []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}, "CUDA_VISIBLE_DEVICES", nil}
	}
	var list []found
	minors := map[string]string{} // by UUID
	for i, info := range infos {
		f := fields(m.read(info), ":")
		if f["Model"] == "" || strings.EqualFold(f["GPU Excluded"], "yes") {
			continue
		}
		id, minor := f["GPU UUID"], f["Device Minor"]
		if !strings.HasPrefix(id, "GPU-") || strings.Contains(id, "?") {
			id = strconv.Itoa(i)
		}
		if minor == "" {
			minor = strconv.Itoa(i)
		}
		minors[strings.ToLower(id)] = minor
		list = append(list, gpu(f["Model"], minor, id))
	}
	out, err := m.Run(ctx, "nvidia-smi", "-L")
	if err != nil {
		return list
	}
	var told []found
	var whole found // the GPU of the lines that are read
	sliced := false
	for line := range strings.Lines(string(out)) {
		if g := smiGPU.FindStringSubmatch(line); g != nil {
			minor, ok := minors[strings.ToLower(g[3])]
			if !ok {
				minor = g[1]
			}
			whole, sliced = gpu(g[2], minor, g[3]), false
			told = append(told, whole)
		} else if s := smiMIG.FindStringSubmatch(line); s != nil && whole.device.ID != "" {
			if !sliced {
				told, sliced = told[:len(told)-1], true
			}
			f := whole
			k, _ := pcm.FindAccelerator(whole.accelerator.Name())
			f.accelerator = whole.accelerator.Sliced(s[1], k.Slices)
			f.device = Device{s[2], whole.device.Nodes}
			f.shared = append(slices.Clone(whole.shared), "/dev/nvidia-caps/nvidia-cap*")
			told = append(told, f)
		}
	}
	if len(told) == 0 {
		return list
	}
	return told[:min(len(told), maxDevices)]
}

// kfd reads what the driver of AMD's and Hygon's accelerators tells.
func (m Machine) kfd(context.Context) []found {
	var list []found
	for _, node := range m.glob("/sys/class/kfd/kfd/topology/nodes/*") {
		f := fields(m.read(node+"/properties"), " ")
		if f["simd_count"] == "" || f["simd_count"] == "0" {
			continue // a processor
		}
		vendor, _ := strconv.ParseUint(f["vendor_id"], 10, 16)
		device, _ := strconv.ParseUint(f["device_id"], 10, 16)
		a, ok := AcceleratorOf(NamePCI, fmt.Sprintf("%04x:%04x", vendor, device))
		if !ok {
			memory, _ := strconv.ParseInt(fields(m.read(node+"/mem_banks/0/properties"), " ")["size_in_bytes"], 10, 64)
			a.Memory = pcm.Bytes(max(memory, 0))
		}
		id := strconv.Itoa(len(list))
		if unique, _ := strconv.ParseUint(f["unique_id"], 10, 64); unique != 0 {
			id = fmt.Sprintf("GPU-%016x", unique) // stays the same where others are out of sight
		}
		list = append(list, found{
			a, Device{id, m.existing("/dev/dri/renderD" + f["drm_render_minor"])}, []string{"/dev/kfd"}, "ROCR_VISIBLE_DEVICES",
			[]string{"/sys/class/kfd", "/sys/devices/virtual/kfd", "/sys/module/amdgpu", "/opt/rocm"},
		})
	}
	return list
}

// ascend counts the device files of Huawei's NPUs; what they are npu-smi tells,
// else their PCI IDs.
func (m Machine) ascend(ctx context.Context) []found {
	nodes := m.numbered("/dev/davinci")
	if len(nodes) == 0 {
		return nil
	}
	names := map[string]string{}
	if out, err := m.Run(ctx, "npu-smi", "info"); err == nil {
		for line := range strings.Lines(string(out)) {
			if n := npuLine.FindStringSubmatch(line); n != nil {
				names[n[1]] = n[2]
			}
		}
	}
	a := pcm.Accelerator{Vendor: "huawei"}
	if ids := m.pci("19e5"); len(ids) > 0 {
		a, _ = AcceleratorOf(NamePCI, ids[0])
	}
	var list []found
	for _, n := range nodes {
		id := lastNums.FindString(n)
		one := a
		if names[id] != "" {
			one, _ = AcceleratorOf(NameProduct, names[id])
			one.Vendor = "huawei"
		}
		list = append(list, found{one, Device{id, []string{n}}, []string{"/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"}, "ASCEND_RT_VISIBLE_DEVICES", []string{"/etc/ascend_install.info", "/etc/hccn.conf"}})
	}
	return list
}

// cambricon counts the device files of Cambricon's cards; PCI IDs tell what they are.
func (m Machine) cambricon(context.Context) []found {
	a := pcm.Accelerator{Vendor: "cambricon"}
	if ids := m.pci("cabc"); len(ids) > 0 {
		a, _ = AcceleratorOf(NamePCI, ids[0])
	}
	var list []found
	for _, n := range m.numbered("/dev/cambricon_dev") {
		list = append(list, found{a, Device{lastNums.FindString(n), []string{n}}, []string{"/dev/cambricon_ctl"}, "MLU_VISIBLE_DEVICES", nil})
	}
	return list
}

// numbered lists the files whose name is prefix and a number, by that number.
func (m Machine) numbered(prefix string) []string {
	var list []string
	for _, n := range m.glob(prefix + "[0-9]*") {
		if strings.Trim(strings.TrimPrefix(n, prefix), "0123456789") == "" {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return list
}

// pci lists the "vendor:device" of a vendor's devices that compute: processing
// accelerators and displays, not network cards.
func (m Machine) pci(vendor string) []string {
	var list []string
	for _, d := range m.glob("/sys/bus/pci/devices/*") {
		hex := func(file string) string {
			return strings.TrimPrefix(strings.ToLower(strings.TrimSpace(m.read(d+"/"+file))), "0x")
		}
		class := hex("class")
		if hex("vendor") == vendor && (strings.HasPrefix(class, "12") || strings.HasPrefix(class, "03")) {
			list = append(list, vendor+":"+hex("device"))
		}
	}
	return list
}
