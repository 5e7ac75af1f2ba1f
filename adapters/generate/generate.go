// Package generate writes the project of a plug-in in a language of the author's
// choice: from a description, from an OpenAPI document, or from nothing but the
// contract. What it writes it can write again when the description has changed: the
// author's parts, marked in the files, stay as they are.
package generate

import (
	"bytes"
	"embed"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/plugin"
	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// Below templates/LANGUAGE lie the folders of what a project consists of:
//
//	generated  written from the description, with regions for the author
//	support    the same in each project
//	stubs      made from the contract alone
//	once       written once, then the author's
//
// and for projects of one sort only folders with its name behind a dash: described or
// bare, and openapi beside bare.
// Files that end in .tmpl are templates over [Project], see execute; others are copied.
//
//go:embed all:templates
var templates embed.FS

// Options say what to write.
type Options struct {
	Name     string // the adapter's
	Language string
	Dir      string
	From     []byte // description or OpenAPI document; nothing: the contract alone
	FromFile string // what that is called
	FromDir  fs.FS  // where its neighbours are
	Force    bool   // overwrite generated parts that were edited
	Version  string // of the program
}

// Project is what templates see.
type Project struct {
	Name        string
	Title       string // the name with a capital, without dashes
	Package     string // the name as an identifier
	Language    string
	Version     string
	From        string
	About       string
	Description *description.Description // nil where there is none
	Scripted    bool                     // tasks are run by task.script

	// Of an OpenAPI document.
	Operations []Operation
	Types      []Object
	Logins     []Login
	Unknown    []string // ways to show who asks that are left to the author
	Server     string   // where it says that it is
	Endpoint   string   // that as an example
	Words      []Word   // of states
	Moves      bool     // calls take or give what is no JSON

	emitter  *emitter
	sections map[string]string
}

// Kind is where a file comes from.
type Kind string

// The kinds.
const (
	Generated Kind = "generated"
	Support   Kind = "support" // the same in each project
	Stubs     Kind = "stubs"   // made from the contract by protoc
	Once      Kind = "once"    // written once, then the author's
)

// file is one of a project.
type file struct {
	path string
	kind Kind
	text []byte
}

// Languages are the names of all there are.
func Languages() []string { return slices.Sorted(maps.Keys(languages)) }

// New writes a project, or writes it anew.
func New(o Options) (*Report, error) {
	lang, ok := languages[o.Language]
	if o.Language == "" {
		return nil, pcm.Errorf(pcm.Invalid, "no language is given: --lang takes %s", strings.Join(Languages(), ", "))
	}
	if !ok {
		return nil, pcm.Errorf(pcm.Invalid, "%q is none of the languages %s", o.Language, strings.Join(Languages(), ", "))
	}
	if !pcm.ValidName(o.Name) {
		return nil, pcm.Errorf(pcm.Invalid, "%q is not a name of lower-case letters, digits, dots and dashes", o.Name)
	}
	p, err := newProject(o, lang)
	if err != nil {
		return nil, err
	}
	files, err := p.files(lang)
	if err != nil {
		return nil, err
	}
	r, err := write(o, lang, files)
	if err == nil {
		if p.Description != nil && p.Description.Create.Many != nil {
			r.Omitted = []string{"create.many: each task is created by itself"}
		}
		r.Next = []string{"cd " + quote(o.Dir), "make build", p.Trial()}
	}
	return r, err
}

func newProject(o Options, lang *language) (*Project, error) {
	p := &Project{
		Name: o.Name, Language: o.Language, Version: o.Version, From: comment(path.Base(filepath.ToSlash(o.FromFile))),
		Package: strings.NewReplacer("-", "_", ".", "_").Replace(o.Name), emitter: &emitter{Syntax: lang.Syntax}, sections: map[string]string{},
	}
	for _, part := range strings.FieldsFunc(o.Name, func(r rune) bool { return r == '-' || r == '.' }) {
		p.Title += strings.ToUpper(part[:1]) + part[1:]
	}
	if lang.pkg != nil {
		p.Package = lang.pkg(p.Package)
	}
	if p.Title[0] <= '9' {
		p.Title = "Adapter" + p.Title // classes begin with a letter
	}
	p.About = "runs tasks of PCM on " + o.Name
	if o.From == nil {
		p.From = ""
		return p, nil
	}
	if isOpenAPI(o.From) {
		doc, err := description.ParseOpenAPI(o.From)
		if err != nil {
			return nil, err
		}
		if len(doc.Operations) == 0 {
			return nil, pcm.Errorf(pcm.Invalid, "%s has no operations", o.FromFile)
		}
		return p, p.api(doc, lang)
	}
	d, problems := description.ParseIn(o.From, o.FromDir)
	for _, problem := range problems {
		if !problem.Warning {
			return nil, pcm.Errorf(pcm.Invalid, "%s: %s; 'pcm adapter lint' tells all", o.FromFile, problem)
		}
	}
	p.Description, p.About = d, oneLine(d.About)
	if err := p.describe(o, lang); err != nil {
		return nil, err
	}
	return p, nil
}

// isOpenAPI tells an OpenAPI document from a description.
func isOpenAPI(data []byte) bool {
	var doc struct{ OpenAPI, PCM any }
	if json.Unmarshal(data, &doc) == nil {
		return doc.OpenAPI != nil && doc.PCM == nil
	}
	for line := range bytes.Lines(data) {
		line = bytes.TrimLeft(line, " \t{")
		if bytes.HasPrefix(line, []byte("openapi:")) || bytes.HasPrefix(line, []byte(`"openapi"`)) {
			return !bytes.Contains(data, []byte("\npcm: adapter/")) && !bytes.HasPrefix(data, []byte("pcm: adapter/"))
		}
	}
	return false
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Section is a part of the description as code of the language: "create".
func (p *Project) Section(name string) string { return p.sections[name] }

// Has tells whether the description has that part.
func (p *Project) Has(name string) bool { return p.sections[name] != "" }

// Text is a text as the language writes it.
func (p *Project) Text(s string) string { return p.emitter.Text(s) }

// Signed tells whether requests are signed by a scheme that projects don't bring.
func (p *Project) Signed() bool {
	return p.Description != nil && (p.Description.Login.Kind == "aws" || p.Description.Login.Kind == "huawei")
}

// Stored tells whether files go through a store that projects don't bring.
func (p *Project) Stored() bool {
	return p.Description != nil && p.Description.Data != nil && (p.Description.Data.Store != "presigned" || p.Description.Data.Pack != "tar")
}

// tailed tells whether a log keeps its end only.
func (p *Project) tailed() bool {
	return slices.ContainsFunc(p.Description.Logs, func(l description.Log) bool { return l.Follow == "tail" })
}

// folders are those below the language's that have files for this project.
func (p *Project) folders(root string) (all []string) {
	sorts := []string{"bare"}
	switch {
	case p.Description != nil:
		sorts = []string{"described"}
	case p.Operations != nil:
		sorts = []string{"bare", "openapi"} // as much is the author's
	}
	for _, kind := range []Kind{Generated, Support, Stubs, Once} {
		dirs := []string{root + "/" + string(kind)}
		for _, sort := range sorts {
			dirs = append(dirs, root+"/"+string(kind)+"-"+sort)
		}
		for _, dir := range dirs {
			if _, err := fs.Stat(templates, dir); err == nil {
				all = append(all, dir)
			}
		}
	}
	return all
}

// files makes all files of the project.
func (p *Project) files(lang *language) ([]file, error) {
	root := "templates/" + p.Language
	var all []file
	for _, dir := range p.folders(root) {
		kind, _, _ := strings.Cut(path.Base(dir), "-")
		err := fs.WalkDir(templates, dir, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			text, err := templates.ReadFile(name)
			if err != nil {
				return err
			}
			to := strings.ReplaceAll(strings.TrimPrefix(name, dir+"/"), "NAME", p.Package)
			to, expand := strings.CutSuffix(to, ".tmpl")
			to = strings.TrimSuffix(to, ".txt") // so that the tree's own tools pass it over
			if expand {
				if text, err = execute(name, string(text), p); err != nil {
					return err
				}
			}
			if len(bytes.TrimSpace(text)) == 0 {
				return nil // not for this project
			}
			if path.Base(to) == "gitignore" {
				to = path.Join(path.Dir(to), ".gitignore")
			}
			all = append(all, file{to, Kind(kind), text})
			return nil
		})
		if err != nil {
			return nil, pcm.Errorf(pcm.Internal, "the templates of %s: %w", p.Language, err)
		}
	}
	if p.Scripted {
		to := "script.sh"
		if lang.script != nil {
			to = lang.script(p)
		}
		all = append(all, file{to, Support, []byte(rest.ScriptText(p.tailed()))})
	}
	for from, to := range lang.stubs {
		text, err := plugin.Sources.ReadFile(from)
		if err != nil {
			return nil, pcm.Errorf(pcm.Internal, "the stubs: %w", err)
		}
		if lang.stub != nil {
			text = lang.stub(p, text)
		}
		all = append(all, file{to, Stubs, text})
	}
	for i, f := range all {
		if lang.format == nil || f.kind == Stubs {
			continue
		}
		text, err := lang.format(f.path, f.text)
		if err != nil {
			return nil, pcm.Errorf(pcm.Internal, "%s of this project can't be formatted: %w", f.path, err)
		}
		all[i].text = text
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return all, nil
}

// readProject reads what is in the folder, and what was generated into it.
func readProject(dir string) (map[string][]byte, *manifest, error) {
	have, err := readTree(dir)
	if err != nil {
		return nil, nil, err
	}
	m, err := readManifest(have)
	if err != nil || m == nil {
		return have, nil, err
	}
	return have, m, readNamed(dir, have, slices.Collect(maps.Keys(m.Files)))
}

// readNamed adds files that the tree's reading passed over, for where they are or
// how large: what is not known to be there would be overwritten.
func readNamed(dir string, have map[string][]byte, names []string) error {
	for _, name := range names {
		if _, ok := have[name]; ok {
			continue
		}
		at := filepath.Join(dir, filepath.FromSlash(name))
		info, err := os.Lstat(at)
		if os.IsNotExist(err) {
			continue
		}
		if err == nil && !info.Mode().IsRegular() {
			return pcm.Errorf(pcm.Conflict, "%s is not a plain file, so it can't be written anew: move it away", at)
		}
		if err == nil {
			have[name], err = os.ReadFile(at)
		}
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "can't read what is in %s: %w", dir, err)
		}
	}
	return nil
}

// readTree reads what is in the project's folder already; nothing if that is not there.
func readTree(dir string) (map[string][]byte, error) {
	have := map[string][]byte{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if name != dir && (strings.HasPrefix(e.Name(), ".") || slices.Contains([]string{"node_modules", "__pycache__", "dist", "bin", "build", "venv"}, e.Name())) {
				return fs.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > 4<<20 || len(have) > 10_000 {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		have[filepath.ToSlash(rel)], err = os.ReadFile(name)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		return nil, pcm.Errorf(pcm.Invalid, "can't read what is in %s: %w", dir, err)
	}
	return have, nil
}
