package generate

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/jointcloud/pcm"
)

// Share is how much of a project was generated, in lines that hold something.
type Share struct {
	Name      string `json:"name"`
	Language  string `json:"language"`
	From      string `json:"from,omitempty"`
	Generated int    `json:"generated"` // from the description
	Support   int    `json:"support"`   // the same in each project
	Stubs     int    `json:"stubs"`     // made from the contract by protoc
	Hand      int    `json:"hand"`      // the author's: in regions, in files of the author's
}

// Percent is what was not written by hand, of all but the stubs.
func (s Share) Percent() float64 {
	if all := s.Generated + s.Support + s.Hand; all > 0 {
		return 100 * float64(s.Generated+s.Support) / float64(all)
	}
	return 0
}

// source are the endings of files whose lines count.
var source = []string{".go", ".py", ".ts", ".js", ".sh"}

// Measure counts the lines of a project, and finds what is left to write.
func Measure(dir string) (*Share, []Place, error) {
	none := pcm.Errorf(pcm.NotFound, "%s holds no project of 'pcm adapter new': it has no %s", dir, manifestName)
	if _, err := os.Stat(filepath.Join(dir, manifestName)); os.IsNotExist(err) {
		return nil, nil, none // whatever else is there is not looked at
	}
	have, m, err := readProject(dir)
	if err != nil {
		return nil, nil, err
	}
	if m == nil {
		return nil, nil, none
	}
	s := &Share{Name: m.Name, Language: m.Language, From: m.From}
	var left []Place
	for _, name := range slices.Sorted(maps.Keys(have)) {
		text := string(have[name])
		note, ok := m.Files[name]
		if !slices.Contains(source, path.Ext(name)) {
			continue
		}
		switch {
		case !ok:
			s.Hand += lines(text)
			continue
		case note.Kind == Once:
			if digest(text) == note.Digest {
				s.Generated += note.Lines
			} else {
				s.Hand += lines(text)
			}
			continue
		}
		rs, blank, err := regions(have[name])
		if err != nil {
			return nil, nil, pcm.Errorf(pcm.Invalid, "%s: %w", name, err)
		}
		count := lines(blank)
		for _, r := range rs {
			if digest(r.Text) != note.Regions[r.Name] {
				s.Hand += lines(r.Text)
				continue
			}
			count += lines(r.Text)
			if r.Needed {
				left = append(left, Place{name, r.Line, r.Name})
			}
		}
		if digest(blank) != note.Digest { // edited, all of it counts as the author's
			s.Hand += count
			continue
		}
		switch note.Kind {
		case Support:
			s.Support += count
		case Stubs:
			s.Stubs += count
		default:
			s.Generated += count
		}
	}
	return s, left, nil
}
