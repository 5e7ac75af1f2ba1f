package generate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
)

// Region is a part of a generated file that is the author's, between lines that
// hold "pcm:begin NAME" and "pcm:end NAME". With "pcm:begin NAME needed" it has to
// be written for the adapter to work.
type Region struct {
	Name   string
	Needed bool
	Line   int // of its begin, from 1
	Text   string
}

const (
	beginMark = "pcm:begin "
	endMark   = "pcm:end "
)

// mark gives what stands behind a mark, if the line is a comment that begins with it.
func mark(line, mark string) (string, bool) {
	return strings.CutPrefix(strings.TrimLeft(line, " \t/#*<!-"), mark)
}

// regions finds those of a file; blank is the file without what is in them.
func regions(text []byte) (all []Region, blank string, err error) {
	var b strings.Builder
	var in *Region
	n := 0
	for raw := range bytes.Lines(text) {
		line := string(raw)
		n++
		if rest, ok := mark(line, beginMark); ok {
			words := strings.Fields(rest)
			if in != nil || len(words) == 0 {
				return nil, "", pcm.Errorf(pcm.Invalid, "line %d: a region begins within another, or without a name", n)
			}
			in = &Region{Name: words[0], Needed: len(words) > 1 && words[1] == "needed", Line: n}
			b.WriteString(line)
			continue
		}
		if rest, ok := mark(line, endMark); ok {
			if in == nil || strings.TrimSpace(rest) != in.Name {
				return nil, "", pcm.Errorf(pcm.Invalid, "line %d: no region %s begins before it", n, strings.TrimSpace(rest))
			}
			if slices.ContainsFunc(all, func(r Region) bool { return r.Name == in.Name }) {
				return nil, "", pcm.Errorf(pcm.Invalid, "line %d: a second region is called %s: make one of them", in.Line, in.Name)
			}
			all = append(all, *in)
			in = nil
		}
		if in != nil {
			in.Text += line
			continue
		}
		b.WriteString(line)
	}
	if in != nil {
		return nil, "", pcm.Errorf(pcm.Invalid, "line %d: region %s has no end", in.Line, in.Name)
	}
	return all, b.String(), nil
}

// fill puts the author's texts into the regions of a file. Names that it has are
// taken out of texts.
func fill(text []byte, texts map[string]string) []byte {
	var b bytes.Buffer
	skip := false
	for raw := range bytes.Lines(text) {
		line := string(raw)
		if _, ok := mark(line, endMark); ok {
			skip = false
		}
		if !skip {
			b.WriteString(line)
		}
		if rest, ok := mark(line, beginMark); ok {
			name := strings.Fields(rest)[0]
			if own, ok := texts[name]; ok {
				b.WriteString(own)
				delete(texts, name)
				skip = true
			}
		}
	}
	return b.Bytes()
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

// lines counts those that hold something.
func lines(s string) (n int) {
	for line := range strings.Lines(s) {
		if strings.TrimSpace(line) != "" {
			n++
		}
	}
	return n
}
