package adapters

import (
	"testing"

	"github.com/jointcloud/pcm"
)

// TestAcceleratorOf: what back ends call an accelerator is understood, and what is
// not known keeps its name and its vendor.
func TestAcceleratorOf(t *testing.T) {
	for _, c := range []struct {
		kind           NameKind
		name           string
		vendor, called string
		ok             bool
	}{
		{NameProduct, "NVIDIA A100-SXM4-80GB", "nvidia", "a100.80g", true},
		{NameProduct, "NVIDIA-A100-SXM4-80GB", "nvidia", "a100.80g", true},
		{NameProduct, "NVIDIA A100 80GB PCIe", "nvidia", "a100.80g", true},
		{NameProduct, "A100-PCIE-40GB", "nvidia", "a100.40g", true},
		{NameProduct, "a100", "nvidia", "a100.40g", true}, // the least that it can be
		{NameProduct, "NVIDIA-A100-SXM4-40GB-MIG-3g.20gb", "nvidia", "a100.3g.20gb", true},
		{NameProduct, "NVIDIA H100 80GB HBM3", "nvidia", "h100.80g", true},
		{NameProduct, "NVIDIA-H100-PCIe", "nvidia", "h100-pcie.80g", true},
		{NameProduct, "NVIDIA H100 NVL", "nvidia", "h100-nvl.94g", true},
		{NameProduct, "NVIDIA H200", "nvidia", "h200.141g", true},
		{NameProduct, "Tesla V100-SXM2-32GB", "nvidia", "v100.32g", true},
		{NameProduct, "Tesla V100-SXM2-16GB", "nvidia", "v100.16g", true},
		{NameProduct, "Tesla T4", "nvidia", "t4.16g", true},
		{NameProduct, "NVIDIA L4", "nvidia", "l4.24g", true},
		{NameProduct, "NVIDIA L40S", "nvidia", "l40s.48g", true},
		{NameProduct, "NVIDIA GeForce RTX 4090", "nvidia", "rtx4090.24g", true},
		{NameProduct, "NVIDIA GeForce RTX 3080", "nvidia", "rtx-3080", false},
		{NameProduct, "AMD Instinct MI300X", "amd", "mi300x.192g", true},
		{NameProduct, "AMD_Instinct_MI250X_OAM", "amd", "mi250x.64g", true},
		{NameProduct, "910B3", "huawei", "ascend910b.64g", true},
		{NameProduct, "910B4", "huawei", "ascend910b.32g", true},
		{NameProduct, "Ascend910B", "huawei", "ascend910b.32g", true},
		{NameProduct, "Ascend310P3", "huawei", "ascend310p.24g", true},
		{NameProduct, "MLU370-X8", "cambricon", "mlu370.48g", true},
		{NameProduct, "MLU590-M9", "cambricon", "mlu590-m9", false},
		{NameProduct, "NVIDIA X900-SXM9-512GB", "nvidia", "x900-sxm9.512g", false},
		{NameProduct, "\x1b[31m🚀", "", "31m", false},
		{NameProduct, "", "", "", false},

		{NameKubernetes, "nvidia.com/gpu", "nvidia", "nvidia", false},
		{NameKubernetes, "huawei.com/Ascend910", "huawei", "ascend910.32g", true},
		{NameKubernetes, "huawei.com/Ascend310P", "huawei", "ascend310p.24g", true},
		{NameKubernetes, "huawei.com/npu", "huawei", "huawei", false},
		{NameKubernetes, "amd.com/gpu", "amd", "amd", false},
		{NameKubernetes, "cambricon.com/mlu", "cambricon", "cambricon", false},
		{NameKubernetes, "cambricon.com/mlu370", "cambricon", "mlu370.24g", true},
		{NameKubernetes, "acme.com/frobnicator", "acme", "frobnicator", false},

		{NameGres, "gpu", "", "gpu", false},
		{NameGres, "gpu:4", "", "gpu", false},
		{NameGres, "gpu:a100:4(S:0-1)", "nvidia", "a100.40g", true},
		{NameGres, "gpu:a100_80gb:8", "nvidia", "a100.80g", true},
		{NameGres, "gpu:a100_3g.20gb:2", "nvidia", "a100.3g.20gb", true},
		{NameGres, "gres/gpu:v100=2", "nvidia", "v100.16g", true},
		{NameGres, "gpu:mi210", "amd", "mi210.64g", true},

		{NamePCI, "10de:20b2", "nvidia", "a100.80g", true},
		{NamePCI, "19E5:D802", "huawei", "ascend910b.64g", true},
		{NamePCI, "10de:ffff", "nvidia", "pci-ffff", false},
	} {
		a, ok := AcceleratorOf(c.kind, c.name)
		if a.Vendor != c.vendor || a.Name() != c.called || ok != c.ok {
			t.Errorf("%s %q is %q of %q, %v; want %q of %q, %v", c.kind, c.name, a.Name(), a.Vendor, ok, c.called, c.vendor, c.ok)
		}
		if err := a.Validate(); err != nil && c.name != "" {
			t.Errorf("%s %q: %v", c.kind, c.name, err)
		}
	}
}

// TestSlices: a slice has its share of the speed and the memory in its name.
func TestSlices(t *testing.T) {
	gpu, _ := AcceleratorOf(NameKubernetes, "nvidia.com/mig-3g.40gb")
	a, ok := WithProduct(gpu, "NVIDIA-A100-SXM4-80GB")
	if !ok || a.Name() != "a100.3g.40gb" || a.Memory != 40<<30 || a.TOPS["fp16"] != 312000*3/7 {
		t.Errorf("a slice of an A100 is %s, %v", a, ok)
	}
	whole, _ := AcceleratorOf(NameKubernetes, "nvidia.com/gpu")
	if a, ok := WithProduct(whole, "NVIDIA-A100-SXM4-80GB"); !ok || a.Name() != "a100.80g" || a.TOPS["fp16"] != 312000 {
		t.Errorf("a whole A100 is %s, %v", a, ok)
	}
	if a, ok := WithProduct(whole, "AMD Instinct MI210"); ok || a.Vendor != "nvidia" || a.Model != "" {
		t.Errorf("another vendor's product makes it %s, %v", a, ok)
	}
}

// TestNativeName: an accelerator can be asked for in the back end's words.
func TestNativeName(t *testing.T) {
	for _, k := range pcm.KnownAccelerators() {
		name, ok := NativeName(NameKubernetes, k.Accelerator)
		if !ok {
			t.Errorf("Kubernetes has no name for %s", k.Name)
		}
		if a, _ := AcceleratorOf(NameKubernetes, name); a.Vendor != k.Vendor {
			t.Errorf("%s is %s, which is %s of %q", k.Name, name, a, a.Vendor)
		}
		name, ok = NativeName(NameGres, k.Accelerator)
		if a, known := AcceleratorOf(NameGres, name); !ok || !known || a.Model != k.Model {
			t.Errorf("%s is gres %s, which is %s", k.Name, name, a)
		}
		if len(k.PCI) > 0 {
			name, _ = NativeName(NamePCI, k.Accelerator)
			if a, _ := AcceleratorOf(NamePCI, name); a.Name() != k.Name {
				t.Errorf("%s is PCI %s, which is %s", k.Name, name, a)
			}
		}
		if a, ok := AcceleratorOf(NameProduct, k.Name); !ok || a.Name() != k.Name || a.Memory != k.Memory {
			t.Errorf("%s is read as %s", k.Name, a)
		}
	}
	if name, ok := NativeName(NameKubernetes, pcm.Accelerator{Vendor: "acme", Model: "x"}); ok {
		t.Errorf("a vendor that nobody knows is %s", name)
	}
}

func TestParseGres(t *testing.T) {
	for in, want := range map[string]struct {
		kind, model string
		count       int64
	}{
		"gpu": {"gpu", "", 1}, "gpu:4": {"gpu", "", 4}, "gpu:a100": {"gpu", "a100", 1}, "gpu:a100:4(S:0-1)": {"gpu", "a100", 4},
		"gres/gpu:a100=4": {"gpu", "a100", 4}, "gres/gpu=2": {"gpu", "", 2}, "gpu:a100_3g.20gb:2(IDX:0,1)": {"gpu", "a100_3g.20gb", 2},
		"gpu:-4": {"gpu", "-4", 1}, "": {"", "", 1},
	} {
		kind, model, count := ParseGres(in)
		if kind != want.kind || model != want.model || count != want.count {
			t.Errorf("%q is %q %q %d, want %v", in, kind, model, count, want)
		}
	}
}
