package pcm

import (
	"embed"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
)

// KnownAccelerator is an accelerator with the names under which it is found.
type KnownAccelerator struct {
	Name string
	Accelerator
	Also   []string // further words for the model
	PCI    []string // "vendor:device" in hex
	Slices int64    // into how many equal shares it can be divided; 0: it can't
}

// catalogue is what can be asked for by name.
type catalogue struct {
	classes      []Class
	accelerators []KnownAccelerator
}

// catalogueFile is the form of the files in configs/classes and of a peer's own.
type catalogueFile struct {
	Accelerators []acceleratorEntry `json:"accelerators"`
	Classes      []classEntry       `json:"classes"`
}

type acceleratorEntry struct {
	Name   string             `json:"name"`
	Vendor string             `json:"vendor"`
	Model  string             `json:"model"`
	Memory string             `json:"memory"`
	TOPS   map[Precision]Rate `json:"tops"`
	Also   []string           `json:"also"`
	PCI    []string           `json:"pci"`
	Slices int64              `json:"slices"`
}

type classEntry struct {
	Name      string `json:"name"`
	About     string `json:"about"`
	Resources Ask    `json:"resources"`
}

//go:embed configs/classes/*.yaml
var classFiles embed.FS

// classOrder is the order in which the embedded files are read: what a class names must be known.
var classOrder = []string{"accelerators", "cloud", "ai", "hpc"}

var embedded = sync.OnceValue(func() *catalogue {
	c := &catalogue{}
	for _, name := range classOrder {
		data, err := classFiles.ReadFile("configs/classes/" + name + ".yaml")
		if err == nil {
			c, err = c.with(data, name+".yaml", false)
		}
		if err != nil {
			panic("pcm: an embedded file is wrong: " + err.Error()) // a test reads them all
		}
	}
	return c
})

// own is the catalogue with this peer's own files; nil: it has none.
var own atomic.Pointer[catalogue]

func known() *catalogue {
	if c := own.Load(); c != nil {
		return c
	}
	return embedded()
}

// AddClasses adds the classes and accelerators of a file of this peer's own to
// those that are embedded. It is called at the start, before anything is looked up.
// The error is a *FileError.
func AddClasses(data []byte, filename string) error {
	c, err := known().with(data, filename, true)
	if err == nil {
		own.Store(c)
	}
	return err
}

// Bounds of a catalogue.
const maxKnown = 1024

// with is the catalogue and what a file adds to it.
func (c *catalogue) with(data []byte, filename string, own bool) (*catalogue, error) {
	var file catalogueFile
	at, err := DecodeYAML(data, filename, &file)
	if err != nil {
		return nil, err
	}
	var faults []FileFault
	bad := func(field string, err error) {
		if err != nil {
			p := at.Of(field)
			faults = append(faults, FileFault{p.Line, p.Column, field, err.Error()})
		}
	}
	n := &catalogue{slices.Clone(c.classes), slices.Clone(c.accelerators)}
	for i, e := range file.Accelerators {
		a, err := e.known()
		if err == nil && slices.ContainsFunc(n.accelerators, func(k KnownAccelerator) bool { return reflect.DeepEqual(k, a) }) {
			continue // the file was read before
		}
		if err == nil && slices.ContainsFunc(n.accelerators, func(k KnownAccelerator) bool { return k.Name == a.Name }) {
			err = Errorf(Conflict, "accelerator %s is known already", a.Name)
		}
		bad(fmt.Sprintf("accelerators[%d]", i), err)
		n.accelerators = append(n.accelerators, a)
	}
	for i, e := range file.Classes {
		k, err := e.class(n, own)
		if err == nil && slices.ContainsFunc(n.classes, func(c Class) bool { return reflect.DeepEqual(c, k) }) {
			continue
		}
		if err == nil && slices.ContainsFunc(n.classes, func(c Class) bool { return c.Name == k.Name }) {
			err = Errorf(Conflict, "class %s is known already", k.Name)
		}
		bad(fmt.Sprintf("classes[%d]", i), err)
		n.classes = append(n.classes, k)
	}
	if len(n.classes) > maxKnown || len(n.accelerators) > maxKnown {
		bad("", Errorf(TooLarge, "more than %d classes or accelerators are too many", maxKnown))
	}
	if len(faults) > 0 {
		return nil, &FileError{filename, trimFaults(faults)}
	}
	return n, nil
}

func (e acceleratorEntry) known() (k KnownAccelerator, err error) {
	k = KnownAccelerator{
		Name: e.Name, Accelerator: Accelerator{Vendor: e.Vendor, Model: e.Model, TOPS: e.TOPS},
		Also: e.Also, PCI: e.PCI, Slices: e.Slices,
	}
	if k.Memory, err = ParseBytes(e.Memory); err != nil {
		return k, err
	}
	if err := k.Validate(); err != nil {
		return k, err
	}
	for p := range e.TOPS {
		if !slices.Contains(Precisions, p) {
			return k, Errorf(Invalid, "accelerator %s: %q is not a precision; known: %s", e.Name, p, listed(Precisions))
		}
	}
	switch {
	case k.Vendor == "" || k.Model == "":
		return k, Errorf(Invalid, "accelerator %q needs a vendor and a model", e.Name)
	case e.Name != k.Accelerator.Name():
		return k, Errorf(Invalid, "an accelerator of model %s and %s is called %s, not %q", k.Model, k.Memory, k.Accelerator.Name(), e.Name)
	case e.Slices < 0 || e.Slices > 64:
		return k, Errorf(Invalid, "accelerator %s: %d slices are out of range: 0 to 64", e.Name, e.Slices)
	}
	return k, nil
}

// KnownAccelerators are those that can be asked for by name.
func KnownAccelerators() []KnownAccelerator { return known().accelerators }

// FindAccelerator looks one up by name.
func FindAccelerator(name string) (KnownAccelerator, bool) {
	return known().accelerator(name)
}

func (c *catalogue) accelerator(name string) (KnownAccelerator, bool) {
	i := slices.IndexFunc(c.accelerators, func(k KnownAccelerator) bool { return k.Name == name })
	if i < 0 {
		return KnownAccelerator{}, false
	}
	return c.accelerators[i], true
}
