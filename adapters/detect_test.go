package adapters

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// machine is a made-up machine: files by path, and what its tools print.
func machine(t *testing.T, files map[string]string, tools map[string]string) Machine {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Machine{Root: root, Run: func(_ context.Context, name string, args ...string) ([]byte, error) {
		if out, ok := tools[name+" "+strings.Join(args, " ")]; ok {
			return []byte(out), nil
		}
		return nil, errors.New("not installed")
	}}
}

func summary(all []Devices) string {
	var parts []string
	for _, d := range all {
		var ids []string
		for _, e := range d.Each {
			ids = append(ids, e.ID+"@"+strings.Join(e.Nodes, "+"))
		}
		parts = append(parts, d.Accelerator.Vendor+" "+d.Accelerator.Name()+": "+strings.Join(ids, " ")+" with "+strings.Join(d.Shared, "+")+" by "+d.Variable)
	}
	return strings.Join(parts, "\n")
}

const information = "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 16\nGPU UUID: \t GPU-aaaa-01\nDevice Minor: \t 3\nGPU Excluded:\t No\n"

// TestDetect: what drivers and tools of made-up machines tell is understood.
func TestDetect(t *testing.T) {
	const nvidia = "/proc/driver/nvidia/gpus/"
	second := strings.NewReplacer("GPU-aaaa-01", "GPU-aaaa-02", "\t 3", "\t 1").Replace(information)
	for _, c := range []struct {
		name         string
		files, tools map[string]string
		want         string
	}{
		{"nothing", nil, nil, ""},
		{"a driver without its tool", map[string]string{
			nvidia + "0000:07:00.0/information": information, nvidia + "0000:0f:00.0/information": second,
			"/dev/nvidia1": "", "/dev/nvidia3": "", "/dev/nvidiactl": "", "/dev/nvidia-uvm": "",
		}, nil, "nvidia a100.40g: GPU-aaaa-01@/dev/nvidia3 GPU-aaaa-02@/dev/nvidia1 with /dev/nvidiactl+/dev/nvidia-uvm by CUDA_VISIBLE_DEVICES"},
		{"an excluded one", map[string]string{nvidia + "0/information": strings.Replace(information, "\t No", "\t Yes", 1)}, nil, ""},
		{"slices", map[string]string{
			nvidia + "0/information": information, nvidia + "1/information": second,
			"/dev/nvidia1": "", "/dev/nvidia3": "", "/dev/nvidiactl": "", "/dev/nvidia-caps/nvidia-cap1": "",
		}, map[string]string{"nvidia-smi -L": "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-01)\n" +
			"  MIG 3g.20gb     Device  0: (UUID: MIG-0001)\n  MIG 3g.20gb     Device  1: (UUID: MIG-0002)\n  MIG 1g.5gb      Device  2: (UUID: MIG-0003)\n" +
			"GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-02)\n"},
			"nvidia a100.3g.20gb: MIG-0001@/dev/nvidia3 MIG-0002@/dev/nvidia3 with /dev/nvidiactl+/dev/nvidia-caps/nvidia-cap1 by CUDA_VISIBLE_DEVICES\n" +
				"nvidia a100.1g.5gb: MIG-0003@/dev/nvidia3 with /dev/nvidiactl+/dev/nvidia-caps/nvidia-cap1 by CUDA_VISIBLE_DEVICES\n" +
				"nvidia a100.40g: GPU-aaaa-02@/dev/nvidia1 with /dev/nvidiactl by CUDA_VISIBLE_DEVICES"},
		{"a tool that talks nonsense", map[string]string{nvidia + "0/information": information}, map[string]string{"nvidia-smi -L": "Failed to initialize NVML\n"},
			"nvidia a100.40g: GPU-aaaa-01@ with  by CUDA_VISIBLE_DEVICES"},
		{"AMD beside its processor", map[string]string{
			"/sys/class/kfd/kfd/topology/nodes/0/properties":             "cpu_cores_count 64\nsimd_count 0\nvendor_id 0\n",
			"/sys/class/kfd/kfd/topology/nodes/1/properties":             "simd_count 416\nvendor_id 4098\ndevice_id 29711\nunique_id 255\ndrm_render_minor 128\n",
			"/sys/class/kfd/kfd/topology/nodes/2/properties":             "simd_count 64\nvendor_id 4098\ndevice_id 1\ndrm_render_minor 129\n",
			"/sys/class/kfd/kfd/topology/nodes/2/mem_banks/0/properties": "heap_type 1\nsize_in_bytes 8589934592\n",
			"/dev/kfd": "", "/dev/dri/renderD128": "", "/dev/dri/renderD129": "",
		}, nil, "amd mi210.64g: GPU-00000000000000ff@/dev/dri/renderD128 with /dev/kfd by ROCR_VISIBLE_DEVICES\namd pci-0001.8g: 1@/dev/dri/renderD129 with /dev/kfd by ROCR_VISIBLE_DEVICES"},
		{"Ascend by PCI", map[string]string{
			"/dev/davinci0": "", "/dev/davinci1": "", "/dev/davinci10": "", "/dev/davinci_manager": "", "/dev/hisi_hdc": "",
			"/sys/bus/pci/devices/0/vendor": "0x19e5\n", "/sys/bus/pci/devices/0/device": "0x0222\n", "/sys/bus/pci/devices/0/class": "0x020000\n", // a network card
			"/sys/bus/pci/devices/1/vendor": "0x19e5\n", "/sys/bus/pci/devices/1/device": "0xd801\n", "/sys/bus/pci/devices/1/class": "0x120000\n",
		}, nil, "huawei ascend910.32g: 0@/dev/davinci0 1@/dev/davinci1 10@/dev/davinci10 with /dev/davinci_manager+/dev/hisi_hdc by ASCEND_RT_VISIBLE_DEVICES"},
		{"Ascend by its tool", map[string]string{"/dev/davinci0": "", "/dev/davinci1": ""}, map[string]string{"npu-smi info": "" +
			"+---------------------------+---------------+\n| NPU   Name                | Health        | Power(W)\n+===========================+===============+\n" +
			"| 0     910B3               | OK            | 93.6\n| 0                         | 0000:C1:00.0  | 0\n| 1     910B3               | Warning       | 93.6\n"},
			"huawei ascend910b.64g: 0@/dev/davinci0 1@/dev/davinci1 with  by ASCEND_RT_VISIBLE_DEVICES"},
		{"Cambricon", map[string]string{
			"/dev/cambricon_dev0": "", "/dev/cambricon_ctl": "",
			"/sys/bus/pci/devices/1/vendor": "0xcabc\n", "/sys/bus/pci/devices/1/device": "0x0370\n", "/sys/bus/pci/devices/1/class": "0x120000\n",
		}, nil, "cambricon mlu370.24g: 0@/dev/cambricon_dev0 with /dev/cambricon_ctl by MLU_VISIBLE_DEVICES"},
		{"a card without its driver", map[string]string{
			"/sys/bus/pci/devices/1/vendor": "0x10de\n", "/sys/bus/pci/devices/1/device": "0x20b2\n", "/sys/bus/pci/devices/1/class": "0x030200\n",
		}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := summary(DetectAccelerators(t.Context(), machine(t, c.files, c.tools))); got != c.want {
				t.Errorf("found\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// TestToolsAreBounded: a vendor's tool that hangs or never stops talking holds nobody up.
func TestToolsAreBounded(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{"hangs": "exec sleep 60", "talks": "exec yes", "fine": "echo all is well"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if out, err := runTool(ctx, "hangs"); err == nil || len(out) > 0 {
		t.Errorf("a tool that hangs says %q, %v", out, err)
	}
	if out, err := runTool(t.Context(), "talks"); err != nil || len(out) != toolOutput {
		t.Errorf("a tool that never stops says %d bytes, %v", len(out), err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("they took %s", took)
	}
	if out, err := runTool(t.Context(), "fine"); err != nil || string(out) != "all is well\n" {
		t.Errorf("a good tool says %q, %v", out, err)
	}
	if _, err := runTool(t.Context(), "no-such-tool"); err == nil {
		t.Error("a tool that isn't there runs")
	}
}

// TestMostNumerousFirst: the first kind is that of which there are most.
func TestMostNumerousFirst(t *testing.T) {
	m := machine(t, map[string]string{"/dev/cambricon_dev0": "", "/dev/davinci0": "", "/dev/cambricon_dev1": ""}, nil)
	var vendors []string
	for _, d := range DetectAccelerators(t.Context(), m) {
		vendors = append(vendors, d.Accelerator.Vendor)
	}
	if !slices.Equal(vendors, []string{"cambricon", "huawei"}) {
		t.Errorf("found %q", vendors)
	}
}
