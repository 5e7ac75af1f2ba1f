package main

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// diffView is in what two back ends differ.
type diffView struct {
	A           string                   `json:"a"`
	B           string                   `json:"b"`
	Differences []description.Difference `json:"differences"`
}

func (a *app) adapterDiffCommand() *cobra.Command {
	var site trySite
	var live bool
	c := &cobra.Command{
		Use: "diff A B", Short: "Compare two back ends: what one offers that the other doesn't", Args: exactly(2, "two descriptions: FILEs, or NAMEs that 'pcm adapter list' shows"),
		Long: `Compares two descriptions. With --live both back ends are asked what they have now,
and their pools and flavors are compared too: for each size of a task, which pools have
it and for how many tasks at once. Nothing is made or changed there.

With --live, A and B may be described adapters of the node's configuration, by their
names there. What else a description needs is said with --set and --secret; where both
have a setting of one name, a. and b. before it tell whose it is:

  pcm adapter diff openi modelarts --live --set a.endpoint=https://… --set b.endpoint=https://… …`,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeDescription(nil, nil, "")
		},
		RunE: func(c *cobra.Command, args []string) error {
			v := diffView{A: args[0], B: args[1], Differences: []description.Difference{}}
			if !live {
				for _, flag := range []string{"set", "secret", "allow-private", "ca", "config"} {
					if c.Flags().Changed(flag) {
						return pcm.Errorf(pcm.Invalid, "--%s needs --live: descriptions are compared without asking the back ends", flag)
					}
				}
			}
			var sides [2]side
			for i, arg := range args {
				var err error
				if live {
					sides[i], err = a.side(site, []string{"a.", "b."}[i], arg)
				} else {
					sides[i].described, err = a.readDescription(arg)
				}
				if err == nil {
					sides[i].parsed, err = sides[i].valid()
				}
				if err != nil {
					return err
				}
			}
			x, y := sides[0], sides[1]
			if err := site.unknown(x, y); err != nil {
				return err
			}
			v.Differences = append(v.Differences, description.Diff(x.parsed, y.parsed)...)
			if live {
				has, err := x.ask(c)
				if err != nil {
					return err
				}
				other, err := y.ask(c)
				if err != nil {
					return err
				}
				v.Differences = append(v.Differences, rest.Compare(has, other)...)
			}
			return a.print(v, func(t *table) {
				if len(v.Differences) == 0 {
					t.text("no differences")
					return
				}
				t.row("OF", "NAME", strings.ToUpper(x.name()), strings.ToUpper(y.name()))
				for _, d := range v.Differences {
					t.row(d.Of, plain(d.Name), cmp.Or(plain(d.A), "-"), cmp.Or(plain(d.B), "-"))
				}
			})
		},
	}
	c.Flags().BoolVar(&live, "live", false, "ask both back ends what they have now, and compare that too")
	site.flags(c)
	return c
}

// side is one of two back ends that are compared.
type side struct {
	described
	parsed *description.Description
	cfg    rest.Config
	before string // stands before its flags
}

func (s side) name() string { return cmp.Or(s.cfg.Name, s.parsed.Name) }

// side is an adapter of the node's configuration, or a description with what the flags say.
func (a *app) side(site trySite, before, arg string) (s side, err error) {
	s.before = before
	if len(site.set)+len(site.secret) == 0 || site.file != "" {
		s.cfg, s.described, err = a.configured(site.file, arg)
		if err == nil || pcm.ErrorCode(err) != pcm.NotFound {
			return s, err
		}
	}
	missed := err
	if s.described, err = a.readDescription(arg); err != nil {
		return s, cmp.Or(missed, err)
	}
	parsed, err := s.valid()
	if err != nil {
		return s, err
	}
	s.cfg = rest.Config{AllowPrivate: site.allowPrivate, CA: site.ca}
	if s.cfg.Settings, err = sided("--set", site.set, before, func(k string) bool { _, ok := parsed.Settings[k]; return ok }); err != nil {
		return s, err
	}
	s.cfg.Secrets, err = sided("--secret", site.secret, before, func(k string) bool { _, ok := parsed.Secrets[k]; return ok })
	return s, err
}

// sided are the pairs that are meant for one side: those marked for it, and of those
// that aren't marked the ones that it knows.
func sided(flag string, list []string, before string, known func(string) bool) (map[string]string, error) {
	all, err := pairs(flag, list)
	own := map[string]string{}
	for k, v := range all {
		if known(k) {
			own[k] = v
		}
	}
	for k, v := range all {
		if k, ok := strings.CutPrefix(k, before); ok {
			own[k] = v
		}
	}
	return own, err
}

// unknown finds what flags say that is for neither side.
func (s *trySite) unknown(x, y side) error {
	for _, f := range []struct {
		flag string
		list []string
		in   func(*description.Description) map[string]bool
	}{
		{"--set", s.set, func(d *description.Description) map[string]bool { return names(d.Settings) }},
		{"--secret", s.secret, func(d *description.Description) map[string]bool { return names(d.Secrets) }},
	} {
		for _, p := range f.list {
			k, _, _ := strings.Cut(p, "=")
			if strings.HasPrefix(k, x.before) || strings.HasPrefix(k, y.before) || f.in(x.parsed)[k] || f.in(y.parsed)[k] {
				continue // what a marked one is called is checked with its side
			}
			known := slices.Sorted(maps.Keys(f.in(x.parsed)))
			return pcm.Errorf(pcm.Invalid, "%s %s is for neither %s nor %s%s", f.flag, k, x.name(), y.name(), didYouMean(k, slices.AppendSeq(known, maps.Keys(f.in(y.parsed)))))
		}
	}
	return nil
}

func names[T any](m map[string]T) map[string]bool {
	all := map[string]bool{}
	for k := range m {
		all[k] = true
	}
	return all
}

// ask lists the pools that the back end has now.
func (s side) ask(c *cobra.Command) ([]pcm.Pool, error) {
	cfg, done, err := tried(s.cfg, s.described)
	defer done()
	if err != nil {
		return nil, err
	}
	pools, err := rest.List(c.Context(), cfg)
	return pools, wanted(err, s.before)
}
