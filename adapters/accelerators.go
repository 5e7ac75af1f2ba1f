package adapters

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
)

// NameKind says who calls an accelerator by a name.
type NameKind string

// The kinds of names.
const (
	NameProduct    NameKind = "product"    // drivers and node labels: "NVIDIA A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB", "910B3"
	NameKubernetes NameKind = "kubernetes" // extended resources: "nvidia.com/gpu", "huawei.com/Ascend910", "nvidia.com/mig-3g.20gb"
	NameGres       NameKind = "gres"       // Slurm: "gpu", "gpu:a100", "gpu:a100_3g.20gb:2(S:0)"
	NamePCI        NameKind = "pci"        // "10de:20b2"
)

// resourceVendors are the prefixes of Kubernetes' extended resources by vendor, and
// what follows for a whole accelerator.
var resourceVendors = []struct{ vendor, prefix, whole string }{
	{"nvidia", "nvidia.com/", "gpu"},
	{"amd", "amd.com/", "gpu"},
	{"intel", "gpu.intel.com/", "i915"},
	{"huawei", "huawei.com/", "Ascend910"},
	{"cambricon", "cambricon.com/", "mlu"},
	{"hygon", "hygon.com/", "dcu"},
	{"iluvatar", "iluvatar.com/", "gpu"},
	{"metax", "metax-tech.com/", "gpu"},
	{"mthreads", "mthreads.com/", "gpu"},
	{"enflame", "enflame.com/", "gcu"},
	{"kunlunxin", "baidu.com/", "xpu"},
}

// pciVendors are the PCI vendor IDs of those that make accelerators.
var pciVendors = map[string]string{
	"10de": "nvidia", "1002": "amd", "8086": "intel", "19e5": "huawei", "cabc": "cambricon", "1d94": "hygon",
}

// vendorWords are words of product names that tell the vendor and not the model.
var vendorWords = map[string]string{
	"nvidia": "nvidia", "tesla": "nvidia", "geforce": "nvidia", "quadro": "nvidia",
	"amd": "amd", "instinct": "amd", "radeon": "amd", "intel": "intel",
	"huawei": "huawei", "cambricon": "cambricon", "hygon": "hygon", "dcu": "hygon",
	"iluvatar": "iluvatar", "metax": "metax", "mthreads": "mthreads", "enflame": "enflame", "kunlunxin": "kunlunxin",
}

// modelVendors tell the vendor of a model that isn't known by how its name begins.
var modelVendors = []struct{ prefix, vendor string }{
	{"ascend", "huawei"}, {"mlu", "cambricon"}, {"dcu", "hygon"}, {"mi", "amd"}, {"rtx", "nvidia"}, {"gtx", "nvidia"},
}

// AcceleratorOf tells what is meant by a back end's name for an accelerator. If it
// is not known, ok is false, and the accelerator has as its model the cleaned
// name, and the vendor if that much can be told. What a name leaves open is
// taken at its least: an "a100" of unknown memory is the smaller one.
func AcceleratorOf(kind NameKind, name string) (a pcm.Accelerator, ok bool) {
	switch kind {
	case NamePCI:
		name = strings.ToLower(name)
		for _, k := range pcm.KnownAccelerators() {
			if slices.Contains(k.PCI, name) {
				return k.Accelerator, true
			}
		}
		vendor, device, _ := strings.Cut(name, ":")
		return pcm.Accelerator{Vendor: pciVendors[vendor], Model: cleaned("pci-" + device)}, false
	case NameKubernetes:
		for _, v := range resourceVendors {
			if word, ok := strings.CutPrefix(name, v.prefix); ok {
				return ofVendor(v.vendor, word)
			}
		}
		vendor, word, _ := strings.Cut(name, "/")
		a, ok = product(word)
		a.Vendor = cmp.Or(a.Vendor, cleaned(strings.TrimSuffix(vendor, ".com")))
		return a, ok
	case NameGres:
		kind, model, _ := ParseGres(name)
		if model == "" {
			return pcm.Accelerator{Model: cleaned(cmp.Or(kind, "gpu"))}, false
		}
		return product(model)
	}
	return product(name)
}

// ofVendor reads what follows a vendor's prefix: a general word, a slice or a model.
func ofVendor(vendor, word string) (pcm.Accelerator, bool) {
	if slice, ok := strings.CutPrefix(word, "mig-"); ok { // its model is in the node's labels
		return pcm.Accelerator{Vendor: vendor}.Sliced(cleaned(slice), 7), false
	}
	if slices.Contains([]string{"gpu", "gpu.shared", "mlu", "dcu", "dcunum", "gcu", "xpu", "i915", "xe", "npu", "vgpu"}, strings.ToLower(word)) {
		return pcm.Accelerator{Vendor: vendor}, false
	}
	a, ok := product(word)
	if a.Vendor != vendor {
		return pcm.Accelerator{Vendor: vendor, Model: a.Model}, false
	}
	return a, ok
}

// WithProduct completes an accelerator of which a Kubernetes resource says little
// by the product name that the node's labels give; "" adds nothing.
func WithProduct(a pcm.Accelerator, name string) (pcm.Accelerator, bool) {
	if name == "" {
		return a, false
	}
	p, ok := product(name)
	if a.Vendor != "" && p.Vendor != "" && p.Vendor != a.Vendor {
		return a, false // a label about something else
	}
	p.Vendor = cmp.Or(p.Vendor, a.Vendor)
	if a.Slice == "" || p.Slice != "" {
		return p, ok
	}
	if k, found := pcm.FindAccelerator(p.Name()); found {
		return k.Sliced(a.Slice, k.Slices), ok
	}
	a.Model = p.Model
	return a, ok
}

// product reads a product name: its words tell vendor, model, memory and slice,
// whatever stands between them.
func product(name string) (pcm.Accelerator, bool) {
	if k, ok := pcm.FindAccelerator(strings.ToLower(name)); ok {
		return k.Accelerator, true
	}
	name = strings.NewReplacer("(r)", "", "(tm)", "", "(R)", "", "(TM)", "").Replace(name)
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.'
	})
	vendor, slice, memory := "", "", int64(0)
	var rest []string
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case vendorWords[w] != "":
			vendor = cmp.Or(vendor, vendorWords[w])
		case isSlice(w):
			slice = w
		case w == "mig":
		case strings.Contains(w, "."):
			words = slices.Insert(words, i+1, strings.FieldsFunc(w, func(r rune) bool { return r == '.' })...)
		default:
			if gb, ok := strings.CutSuffix(w, "gb"); ok {
				if n, err := strconv.ParseInt(gb, 10, 32); err == nil {
					memory = n
					continue
				}
			}
			if g, ok := strings.CutSuffix(w, "g"); ok && len(rest) > 0 {
				if n, err := strconv.ParseInt(g, 10, 32); err == nil {
					memory = n
					continue
				}
			}
			rest = append(rest, w)
		}
	}
	best, length := -1, 0
	known := pcm.KnownAccelerators()
	for i, k := range known {
		if vendor != "" && vendor != k.Vendor {
			continue
		}
		n := 0
		for _, word := range append([]string{k.Model}, k.Also...) {
			if has(rest, strings.Split(word, "-")) {
				n = max(n, 2*len(word)) // the longest counts, then that of the right memory, then the smallest
			}
		}
		if n > 0 && memory == int64(k.Memory>>30) {
			n++
		}
		if n > length || n == length && n > 0 && k.Model == known[best].Model && k.Memory < known[best].Memory {
			best, length = i, n
		}
	}
	if best < 0 {
		a := pcm.Accelerator{Vendor: vendor, Model: cleaned(strings.Join(rest, "-")), Memory: pcm.Bytes(memory) << 30}
		for _, m := range modelVendors {
			if vendor == "" && strings.HasPrefix(a.Model, m.prefix) {
				a.Vendor = m.vendor
			}
		}
		if slice != "" {
			a = a.Sliced(slice, 0)
		}
		return a, false
	}
	k := known[best]
	if slice != "" {
		return k.Sliced(slice, k.Slices), true
	}
	return k.Accelerator, true
}

// isSlice tells whether a word is a MIG profile like "3g.20gb".
func isSlice(w string) bool {
	share, memory, ok := strings.Cut(w, "g.")
	if !ok || !strings.HasSuffix(memory, "gb") {
		return false
	}
	_, err1 := strconv.ParseUint(share, 10, 8)
	_, err2 := strconv.ParseUint(strings.TrimSuffix(memory, "gb"), 10, 16)
	return err1 == nil && err2 == nil
}

// has tells whether words stand in list, all in order though not side by side.
func has(list, words []string) bool {
	for _, w := range list {
		if len(words) > 0 && w == words[0] {
			words = words[1:]
		}
	}
	return len(words) == 0
}

// cleaned makes a name of ours out of any text; "" if nothing is left.
func cleaned(s string) string {
	s = strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' {
			return '-'
		}
		return r
	}, strings.ToLower(s))
	return strings.Trim(s[:min(len(s), 63)], "-._")
}

// ParseGres reads one entry of Slurm's Gres: "gpu", "gpu:4", "gpu:a100:4(S:0-1)" or
// "gres/gpu:a100=4". Without a number it is one.
func ParseGres(s string) (kind, model string, count int64) {
	s = strings.TrimPrefix(strings.TrimSpace(s), "gres/")
	s, _, _ = strings.Cut(s, "(")
	parts := strings.Split(strings.ReplaceAll(s, "=", ":"), ":")
	count = 1
	if last := len(parts) - 1; last > 0 {
		if n, err := strconv.ParseInt(parts[last], 10, 64); err == nil && n >= 0 {
			count, parts = n, parts[:last]
		}
	}
	if len(parts) > 1 {
		model = parts[1]
	}
	return parts[0], model, count
}

// NativeName is what a kind of back end usually calls an accelerator of this kind, to
// ask for one there: "nvidia.com/gpu", "gpu:a100". The site's own word, where it was
// discovered, is better. It is false where there is none.
func NativeName(kind NameKind, a pcm.Accelerator) (string, bool) {
	switch kind {
	case NameKubernetes:
		for _, v := range resourceVendors {
			if v.vendor != a.Vendor {
				continue
			}
			switch {
			case a.Slice != "":
				return v.prefix + "mig-" + a.Slice, v.vendor == "nvidia"
			case strings.HasPrefix(a.Model, "ascend310p"):
				return v.prefix + "Ascend310P", true
			case strings.HasPrefix(a.Model, "ascend310"):
				return v.prefix + "Ascend310", true
			}
			return v.prefix + v.whole, true
		}
	case NameGres:
		switch {
		case a.Model != "" && a.Slice != "":
			return "gpu:" + a.Model + "_" + a.Slice, true
		case a.Model != "":
			return "gpu:" + a.Model, true
		}
		return "gpu", true
	case NamePCI:
		if k, ok := pcm.FindAccelerator(a.Name()); ok && len(k.PCI) > 0 {
			return k.PCI[0], true
		}
	case NameProduct:
		return a.Name(), a.Model != ""
	}
	return "", false
}
