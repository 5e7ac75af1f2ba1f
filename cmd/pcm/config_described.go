package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/adapters/rest/description"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/configs"
	"github.com/jointcloud/pcm/node"
)

// Described sells a back end that a description makes known.
type Described struct {
	Description  string            `json:"description"` // name of a shipped one, or a file
	Name         string            `json:"name"`        // empty: the description's
	Settings     map[string]string `json:"settings"`
	Secrets      map[string]string `json:"secrets"` // env:NAME or file:PATH
	AllowPrivate bool              `json:"allow_private"`
	CA           string            `json:"ca"`
	Poll         string            `json:"poll"`
	Rate         float64           `json:"rate"`
	Labels       pcm.Labels        `json:"labels"`
	Price        Price             `json:"price"`
}

const maxDescriptions = 32

// locate makes paths of descriptions absolute that are relative to the configuration.
func locateDescriptions(list []Described, dir string) {
	for i, d := range list {
		if configs.Adapter(d.Description) == nil && d.Description != "" && !filepath.IsAbs(d.Description) {
			if at, err := filepath.Abs(filepath.Join(dir, d.Description)); err == nil {
				list[i].Description = at
			}
		}
	}
}

// read is the description, with its text and the folder that it is in.
func (d Described) read() (*description.Description, described, error) {
	var from described
	if text := configs.Adapter(d.Description); text != nil {
		from = described{text, d.Description, ""}
	} else {
		text, err := readBounded(d.Description)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, from, pcm.Errorf(pcm.Invalid, "there is no file %s, and no description of that name in this program%s; 'pcm adapter list' shows those",
				d.Description, didYouMean(filepath.Base(d.Description), configs.AdapterNames()))
		}
		if err != nil {
			return nil, from, pcm.Errorf(pcm.Invalid, "can't read the description: %w", err)
		}
		from = described{text, d.Description, filepath.Dir(d.Description)}
	}
	parsed, problems := from.parse()
	if parsed == nil {
		i := max(0, slices.IndexFunc(problems, func(p description.Problem) bool { return !p.Warning }))
		return nil, from, pcm.Errorf(pcm.Invalid, "%s: 'pcm adapter lint %s' shows all that is wrong", lintLine(d.Description, "error", problems[i]), d.Description)
	}
	return parsed, from, nil
}

// config is what daemon and supervisor both need of it; the description's file is yet to be named.
func (d Described) config(dir, instance string) (rest.Config, error) {
	poll := time.Duration(0)
	if d.Poll != "" {
		var err error
		if poll, err = time.ParseDuration(d.Poll); err != nil {
			return rest.Config{}, &pcm.FieldError{Field: "poll", Err: pcm.Errorf(pcm.Invalid, "%q is not a time such as 5s", d.Poll)}
		}
	}
	return rest.Config{
		Dir: dir, Instance: instance, Name: d.Name, Settings: d.Settings, Secrets: d.Secrets, AllowPrivate: d.AllowPrivate, CA: d.CA,
		Poll: poll, Rate: d.Rate, Labels: d.Labels,
	}, nil
}

func (d Described) filled() Price { return Plugin{Price: d.Price}.filled() }

func validateDescribed(list []Described, plugins []Plugin) error {
	if len(list) > maxDescriptions {
		return &pcm.FieldError{Field: "adapters.described", Err: pcm.Errorf(pcm.Invalid, "%d descriptions are too many: at most %d", len(list), maxDescriptions)}
	}
	taken := map[string]string{}
	for _, b := range builtIn {
		taken[b.Name] = "an adapter of this program"
	}
	for _, p := range plugins {
		taken[p.Name] = "a plug-in"
	}
	for i, d := range list {
		at := fmt.Sprintf("adapters.described[%d]", i)
		if d.Description == "" {
			return &pcm.FieldError{Field: at, Err: pcm.Errorf(pcm.Invalid, "description names none: one that 'pcm adapter list' shows, or a file")}
		}
		parsed, _, err := d.read()
		if err != nil {
			return &pcm.FieldError{Field: at + ".description", Err: err}
		}
		c, err := d.config("/", "i-0")
		if fault, ok := errors.AsType[*pcm.FieldError](err); ok {
			return &pcm.FieldError{Field: at + "." + fault.Field, Err: fault.Err}
		}
		if err := c.Check(parsed); err != nil {
			return &pcm.FieldError{Field: at, Err: err}
		}
		name := cmp.Or(d.Name, parsed.Name)
		if taken[name] != "" {
			return &pcm.FieldError{Field: at + ".name", Err: pcm.Errorf(pcm.Invalid, "%s is the name of %s: give this one another", name, taken[name])}
		}
		taken[name] = "another description"
		if err := validateSale(at, Capacity{}, 0, d.filled()); err != nil {
			return err
		}
	}
	return nil
}

// describedConfigs are what daemon and supervisor both need. The descriptions are copied into
// the data folder, so that both read the same whatever becomes of the files.
func describedConfigs(list []Described, dir, instance string) ([]rest.Config, error) {
	var all []rest.Config
	folder := filepath.Join(dir, "descriptions")
	var kept []string
	for _, d := range list {
		parsed, from, err := d.read()
		if err != nil {
			return nil, err
		}
		c, err := d.config(dir, instance)
		if err != nil {
			return nil, err
		}
		files := map[string][]byte{"adapter.yaml": from.text}
		if parsed.OpenAPI != "" && from.dir != "" {
			text, err := readUpTo(filepath.Join(from.dir, parsed.OpenAPI), description.MaxOpenAPI)
			if err != nil {
				return nil, pcm.Errorf(pcm.Invalid, "can't read the OpenAPI document of %s: %w", d.Description, err)
			}
			files[parsed.OpenAPI] = text
		}
		sum := string(pcm.DigestOf(pcm.MustMarshal(files)))
		own := filepath.Join(folder, sum[:min(len(sum), 24)])
		kept = append(kept, filepath.Base(own))
		if err := writeCopies(own, files); err != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "can't copy the description into the data folder: %w", err)
		}
		c.File = filepath.Join(own, "adapter.yaml")
		all = append(all, c)
	}
	old, _ := os.ReadDir(folder)
	for _, e := range old {
		if !slices.Contains(kept, e.Name()) {
			os.RemoveAll(filepath.Join(folder, e.Name())) // of a former configuration
		}
	}
	return all, nil
}

func readUpTo(name string, most int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && info.Size() > most {
		err = fmt.Errorf("%s has %s: at most %s are read", name, pcm.Bytes(info.Size()), pcm.Bytes(most))
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}

func writeCopies(dir string, files map[string][]byte) error {
	for name, text := range files {
		at := filepath.Join(dir, name)
		if !strings.HasPrefix(at, dir+string(filepath.Separator)) {
			return fmt.Errorf("%s is not beside the description", name)
		}
		err := os.MkdirAll(filepath.Dir(at), 0o700)
		if err == nil {
			err = os.WriteFile(at+".new", text, 0o600)
		}
		if err == nil {
			err = os.Rename(at+".new", at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// describedSales are the daemon's sides.
func describedSales(list []Described, dir, instance string, client *supervisor.Client) ([]node.Sale, error) {
	all, err := describedConfigs(list, dir, instance)
	if err != nil {
		return nil, err
	}
	var sales []node.Sale
	for i, c := range all {
		price, err := list[i].filled().pcm()
		if err != nil {
			return nil, err
		}
		a, err := rest.New(c, client)
		if err != nil {
			return nil, err
		}
		sales = append(sales, node.Sale{Price: price, Adapter: a})
	}
	return sales, nil
}

// describedRunners are the supervisor's sides. One that can't be made doesn't keep the others from running.
func describedRunners(list []rest.Config, log *slog.Logger) []supervisor.Runner {
	var runners []supervisor.Runner
	for _, c := range list {
		r, err := rest.NewRunner(c, log)
		if err != nil {
			log.Error("a described adapter is left out", "adapter", c.Name, "description", c.File, "err", err)
			continue
		}
		runners = append(runners, r)
	}
	return runners
}

// describedEnviron are the variables that the supervisor needs for secrets.
func describedEnviron(list []Described) (all []string) {
	for _, d := range list {
		for _, ref := range d.Secrets {
			if name, ok := strings.CutPrefix(ref, "env:"); ok {
				all = append(all, name+"="+os.Getenv(name))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
