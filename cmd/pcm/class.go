package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
)

// catalogueView is what can be asked for by name.
type catalogueView struct {
	Classes      []pcm.Class       `json:"classes"`
	Accelerators []acceleratorView `json:"accelerators"`
}

type acceleratorView struct {
	Name string `json:"name"`
	pcm.Accelerator
}

func (a *app) classCommand() *cobra.Command {
	c := &cobra.Command{Use: "class", Aliases: []string{"classes"}, Short: "Show the resource classes and accelerators that jobs can ask for by name"}
	c.RunE = a.group(c)
	list := &cobra.Command{
		Use: "list", Short: "List classes and accelerators", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v, err := a.catalogue()
			if err != nil {
				return err
			}
			return a.print(v, func(t *table) { drawCatalogue(t, v) })
		},
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show one class or accelerator", Args: exactly(1, "the NAME of a class or accelerator"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return append(classNames(), acceleratorNames()...), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if err := a.ownClasses(); err != nil {
				return err
			}
			if c, ok := pcm.FindClass(args[0]); ok {
				return a.print(c, func(t *table) { drawClass(t, c) })
			}
			if k, ok := pcm.FindAccelerator(args[0]); ok {
				v := acceleratorView{k.Name, k.Accelerator}
				return a.print(v, func(t *table) { drawAccelerator(t, v) })
			}
			return pcm.Errorf(pcm.NotFound, "no class or accelerator is called %q%s 'pcm class list' shows them all", args[0], or(didYouMean(args[0], append(classNames(), acceleratorNames()...)), ";"))
		},
	}
	c.AddCommand(list, show)
	return c
}

func (a *app) catalogue() (v catalogueView, err error) {
	if err := a.ownClasses(); err != nil {
		return v, err
	}
	v.Classes = pcm.Classes()
	for _, k := range pcm.KnownAccelerators() {
		v.Accelerators = append(v.Accelerators, acceleratorView{k.Name, k.Accelerator})
	}
	return v, nil
}

func classNames() (names []string) {
	for _, c := range pcm.Classes() {
		names = append(names, c.Name)
	}
	return names
}

func acceleratorNames() (names []string) {
	for _, k := range pcm.KnownAccelerators() {
		names = append(names, k.Name)
	}
	return names
}

func drawCatalogue(t *table, v catalogueView) {
	head := []string{"CLASS", "CPU", "MEMORY", "ACCELERATOR", "ABOUT"}
	if t.wide {
		head = []string{"CLASS", "CPU", "MEMORY", "DISK", "ACCELERATOR", "NETWORK", "SOFTWARE", "OWN", "ABOUT"}
	}
	t.row(head...)
	for _, c := range v.Classes {
		row := []string{c.Name, c.Resources.CPU.String(), c.Resources.Memory.String()}
		if t.wide {
			disk := "-"
			if c.Resources.Disk > 0 {
				disk = c.Resources.Disk.String()
			}
			t.row(append(row, disk, classAccelerator(c), or(classNetwork(c), "-"), or(strings.Join(c.Asks.Software, ", "), "-"), fmt.Sprint(c.Own), c.About)...)
			continue
		}
		t.row(append(row, classAccelerator(c), c.About)...)
	}
	t.text("")
	head = []string{"ACCELERATOR", "VENDOR", "MEMORY"}
	shown := []pcm.Precision{"fp64", "fp16", "int8"}
	if t.wide {
		shown = pcm.Precisions
	}
	for _, p := range shown {
		head = append(head, strings.ToUpper(string(p)))
	}
	t.row(head...)
	for _, k := range v.Accelerators {
		row := []string{k.Name, k.Vendor, k.Memory.String()}
		for _, p := range shown {
			rate := "-"
			if r, ok := k.TOPS[p]; ok {
				rate = r.String()
			}
			row = append(row, rate)
		}
		t.row(row...)
	}
	t.text("\nSpeeds are TOPS of one accelerator, dense; - is not stated by its vendor.")
}

// classAccelerator is how many of what the class has.
func classAccelerator(c pcm.Class) string {
	switch {
	case c.Resources.GPU == 0:
		return "-"
	case c.Resources.GPU == 1:
		return or(c.Asks.Accelerator, "any")
	}
	return fmt.Sprintf("%d × %s", c.Resources.GPU, or(c.Asks.Accelerator, "any"))
}

func classNetwork(c pcm.Class) string {
	return strings.TrimSpace(c.Asks.Bandwidth + " " + c.Asks.Fabric)
}

func drawClass(t *table, c pcm.Class) {
	t.pair("Class", "%s", c.Name)
	t.pair("About", "%s", c.About)
	t.pair("Each task", "%s", c.Resources)
	t.pair("Accelerator", "%s", c.Asks.Accelerator)
	if c.Known != c.Asks.Accelerator {
		t.pair("  which is", "%s", c.Known)
	}
	t.pair("Network", "%s", classNetwork(c))
	t.pair("Software", "%s", strings.Join(c.Asks.Software, ", "))
	if c.Own {
		t.pair("Known", "%s", "to this peer only: jobs that ask for it say what it stands for")
	}
}

func drawAccelerator(t *table, v acceleratorView) {
	t.pair("Accelerator", "%s", v.Name)
	t.pair("Vendor", "%s", v.Vendor)
	t.pair("Model", "%s", v.Model)
	t.pair("Memory", "%s", v.Memory)
	for _, p := range pcm.Precisions {
		if r, ok := v.TOPS[p]; ok {
			t.pair(string(p), "%s TOPS", r)
		}
	}
}
