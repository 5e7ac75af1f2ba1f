package main

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/jointcloud/pcm/adapters"
)

const (
	maxWhy  = 200      // characters of why a test failed
	maxSaid = 16 << 10 // bytes of a line of the tests that are looked at
)

// whys reads what the testing package prints, hands it on, and keeps the first line
// that each capability's test said.
type whys struct {
	to   io.Writer
	line []byte
	test string // that the lines are of, in its name's second part
	said map[string]string
}

var (
	testTurns = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +Adapter/([^/\s]+)`)
	testSays  = regexp.MustCompile(`^ +[^\s:]+\.go:[0-9]+: (.*)$`)
)

func (w *whys) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		w.line = append(w.line, part[:min(len(part), maxSaid-len(w.line))]...)
		if ended {
			w.read(string(w.line))
			w.line = w.line[:0]
		}
		rest = after
	}
	return w.to.Write(p)
}

func (w *whys) read(line string) {
	if m := testTurns.FindStringSubmatch(line); m != nil {
		w.test = m[1]
		return
	}
	m := testSays.FindStringSubmatch(line)
	if m == nil || w.said[w.test] != "" {
		return
	}
	text := strings.TrimSpace(plain(strings.ToValidUTF8(m[1], "?")))
	if utf8.RuneCountInString(text) > maxWhy {
		text = string([]rune(text)[:maxWhy-1]) + "…"
	}
	if w.said == nil {
		w.said = map[string]string{}
	}
	w.said[w.test] = text
}

// of is what the test of a capability said first.
func (w *whys) of(capability string) string { return w.said[strings.ReplaceAll(capability, " ", "_")] }

// capabilityLines lists what adapters are tested for, in lines for a person.
func capabilityLines() string {
	var b strings.Builder
	width := 0
	for i, name := range adapters.Capabilities {
		if i < len(adapters.Capabilities)-1 {
			name += ","
		}
		switch {
		case width == 0:
			b.WriteString("  " + name)
			width = 1 + len(name)
		case width+1+len(name) > 84:
			b.WriteString("\n  " + name)
			width = 1 + len(name)
		default:
			b.WriteString(" " + name)
			width += 1 + len(name)
		}
	}
	return b.String()
}
