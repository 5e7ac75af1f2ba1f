package generate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
)

// manifestName is the file that says what was generated.
const manifestName = ".pcm-adapter.json"

// orphaned keeps what stood in regions that there are no more.
const orphaned = "ORPHANED.md"

// manifest is what was generated, so that it can be told from what the author wrote.
type manifest struct {
	Name     string              `json:"name"`
	Language string              `json:"language"`
	From     string              `json:"from,omitempty"`
	Version  string              `json:"version"`
	Files    map[string]fileNote `json:"files"`
}

type fileNote struct {
	Kind    Kind              `json:"kind"`
	Digest  string            `json:"digest"`            // without what is in regions
	Regions map[string]string `json:"regions,omitempty"` // digests of what stood in them at first
	Lines   int               `json:"lines"`             // as generated
}

// Place is where something is left to the author.
type Place struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Name string `json:"name"`
}

// Report says what New has done.
type Report struct {
	Dir      string   `json:"dir"`
	Share    Share    `json:"share"`
	Written  []string `json:"written"`
	Deleted  []string `json:"deleted,omitempty"`
	Kept     []string `json:"kept,omitempty"`     // regions with what the author wrote
	Orphaned []string `json:"orphaned,omitempty"` // regions that there are no more: in ORPHANED.md
	Left     []Place  `json:"left,omitempty"`     // what the author has to write
	Omitted  []string `json:"omitted,omitempty"`  // sections of the description that the project does without, with what it does instead
	Next     []string `json:"next"`               // commands that build and test it
}

func readManifest(have map[string][]byte) (*manifest, error) {
	m := &manifest{Files: map[string]fileNote{}}
	data, ok := have[manifestName]
	if !ok {
		return nil, nil
	}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "%s is damaged: %v", manifestName, err)
	}
	for name := range m.Files { // the project may be somebody else's
		if !fs.ValidPath(name) {
			return nil, pcm.Errorf(pcm.Invalid, "%s names a file outside of the project: %q", manifestName, name)
		}
	}
	return m, nil
}

// begun tells whether the folder holds nothing but what would be written: a first run broke off.
func begun(have map[string][]byte, files []file) bool {
	left := maps.Clone(have)
	for _, f := range files {
		if bytes.Equal(left[f.path], f.text) {
			delete(left, f.path)
		}
		delete(left, f.path+".new")
	}
	return len(left) == 0
}

// write brings the files into the folder, with the author's parts.
func write(o Options, lang *language, files []file) (*Report, error) {
	have, was, err := readProject(o.Dir)
	if err != nil {
		return nil, err
	}
	switch {
	case was == nil && !begun(have, files) && !o.Force:
		return nil, pcm.Errorf(pcm.Conflict, "%s is not empty and has no %s: give another --dir, or --force to write into it", o.Dir, manifestName)
	case was == nil: // what stands in regions is the author's all the same
		was = &manifest{Files: map[string]fileNote{}}
		for _, f := range files {
			was.Files[f.path] = fileNote{Kind: f.kind}
		}
	case was.Language != o.Language || was.Name != o.Name:
		return nil, pcm.Errorf(pcm.Conflict, "%s holds adapter %s in %s: give another --dir", o.Dir, was.Name, was.Language)
	}
	names := []string{orphaned}
	for _, f := range files {
		names = append(names, f.path)
	}
	if err := readNamed(o.Dir, have, names); err != nil {
		return nil, err
	}
	own, edited, err := authored(have, was, files)
	if err != nil {
		return nil, err
	}
	if len(edited) > 0 && !o.Force {
		return nil, pcm.Errorf(pcm.Conflict, "generated parts were edited outside of the regions that are yours: %s; move that into a region or an author's file, or overwrite it with --force", strings.Join(edited, ", "))
	}
	r := &Report{Dir: o.Dir}
	now := &manifest{Name: o.Name, Language: o.Language, From: filepath.Base(o.FromFile), Version: o.Version, Files: map[string]fileNote{}}
	if o.FromFile == "" {
		now.From = ""
	}
	for name, texts := range own {
		for region := range texts {
			r.Kept = append(r.Kept, name+": "+region)
		}
	}
	out := map[string][]byte{}
	for _, f := range files {
		note, err := noteOf(f)
		if err != nil {
			return nil, err
		}
		now.Files[f.path] = note
		if f.kind == Once {
			if _, ok := have[f.path]; ok {
				note.Digest, note.Lines = was.Files[f.path].Digest, was.Files[f.path].Lines
				now.Files[f.path] = note
				continue
			}
		}
		out[f.path] = fill(f.text, own[f.path])
	}
	// What no region is left for.
	var lost bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(own)) {
		for _, region := range slices.Sorted(maps.Keys(own[name])) {
			r.Orphaned = append(r.Orphaned, name+": "+region)
			r.Kept = slices.DeleteFunc(r.Kept, func(k string) bool { return k == name+": "+region })
			fmt.Fprintf(&lost, "## %s, region %s\n\n```\n%s```\n\n", name, region, own[name][region])
		}
	}
	if lost.Len() > 0 {
		head := have[orphaned]
		if head == nil {
			head = []byte("# Parts that have no place any more\n\nThe regions that held them are gone from the generated files.\n\n")
		}
		if !bytes.Contains(head, lost.Bytes()) { // as it does after a run that broke off
			head = append(slices.Clone(head), lost.Bytes()...)
		}
		out[orphaned] = head
	}
	for name, note := range was.Files {
		if _, ok := now.Files[name]; !ok && note.Kind != Once {
			r.Deleted = append(r.Deleted, name)
		}
	}
	raw, err := json.MarshalIndent(now, "", "  ")
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "the manifest can't be written: %w", err)
	}
	out[manifestName] = append(raw, '\n')
	if err := r.save(out, have); err != nil {
		return nil, err
	}
	slices.Sort(r.Kept)
	slices.Sort(r.Deleted)
	return r, r.measure(o.Dir)
}

// noteOf is what the manifest says of a file.
func noteOf(f file) (fileNote, error) {
	note := fileNote{Kind: f.kind, Lines: lines(string(f.text))}
	rs, blank, err := regions(f.text)
	if err != nil {
		return note, pcm.Errorf(pcm.Internal, "%s: %w", f.path, err)
	}
	note.Digest = digest(blank)
	for _, region := range rs {
		if note.Regions == nil {
			note.Regions = map[string]string{}
		}
		note.Regions[region.Name] = digest(region.Text)
	}
	return note, nil
}

// authored is what the author wrote into regions, and which files were edited
// elsewhere. What is as it would be written now was written by a run that broke off.
func authored(have map[string][]byte, was *manifest, files []file) (own map[string]map[string]string, edited []string, err error) {
	own = map[string]map[string]string{}
	fresh := map[string]fileNote{}
	for _, f := range files {
		if fresh[f.path], err = noteOf(f); err != nil {
			return nil, nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(was.Files)) {
		note := was.Files[name]
		text, ok := have[name]
		if !ok || note.Kind == Once {
			continue
		}
		rs, blank, err := regions(text)
		if err != nil {
			return nil, nil, pcm.Errorf(pcm.Invalid, "%s: %w", name, err)
		}
		if d := digest(blank); d != note.Digest && d != fresh[name].Digest {
			edited = append(edited, name)
		}
		for _, region := range rs {
			if d := digest(region.Text); d == note.Regions[region.Name] || d == fresh[name].Regions[region.Name] {
				continue
			}
			if own[name] == nil {
				own[name] = map[string]string{}
			}
			own[name][region.Name] = region.Text
		}
	}
	return own, edited, nil
}

// save writes what differs, each file whole or not at all: what would be lost
// otherwise first, and the manifest last, so that a run that broke off can be run again.
func (r *Report) save(out, have map[string][]byte) error {
	err := os.MkdirAll(r.Dir, 0o755)
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "can't write the project: %w", err)
	}
	root, err := os.OpenRoot(r.Dir) // whatever links are in it
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "can't write the project: %w", err)
	}
	defer root.Close()
	names := slices.Sorted(maps.Keys(out))
	rank := map[string]int{orphaned: -1, manifestName: 1}
	slices.SortStableFunc(names, func(a, b string) int { return rank[a] - rank[b] })
	for _, name := range names {
		if name == manifestName {
			for _, old := range r.Deleted {
				if err := root.Remove(old); err != nil && !os.IsNotExist(err) {
					return pcm.Errorf(pcm.Invalid, "can't delete what is generated no more: %w", err)
				}
			}
		}
		if bytes.Equal(out[name], have[name]) {
			continue
		}
		err := root.MkdirAll(path.Dir(name), 0o755)
		if err == nil {
			err = root.WriteFile(name+".new", out[name], 0o644)
		}
		if err == nil {
			err = root.Rename(name+".new", name)
		}
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "can't write the project: %w", err)
		}
		r.Written = append(r.Written, name)
	}
	return nil
}

func (r *Report) measure(dir string) error {
	s, left, err := Measure(dir)
	if err != nil {
		return err
	}
	r.Share, r.Left = *s, left
	return nil
}
