package rest

import (
	"bytes"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// marks tells apart what is mixed in the output of a script: the task's two
// streams, and what the script itself says. What comes before the task begins, or
// after its end, is the back end's own and is dropped.
type marks struct {
	nonce          []byte
	stdout, stderr io.Writer

	lose    func() // called when a part of the output is missing
	rest    []byte // that may be the begin of a mark, or a mark without its end
	began   bool
	console bool // lines end as on a terminal

	ended bool
	code  int
	fault string // of the back end: inputs or outputs
	over  bool   // its outputs are too large
	sized bool   // the script has said how long the streams are
	sizes [2]int64
	cpu   time.Duration
	peak  pcm.Bytes
}

// maxMark is the longest line that a script marks; longer ones are cut in two.
const maxMark = 1 << 20

// Write takes what has come.
func (m *marks) Write(p []byte) (int, error) {
	m.rest = append(m.rest, p...)
	for {
		i := bytes.Index(m.rest, m.nonce)
		if i < 0 {
			keep := overlap(m.rest, m.nonce)
			err := m.plain(m.rest[:len(m.rest)-keep])
			m.rest = append(m.rest[:0], m.rest[len(m.rest)-keep:]...)
			return len(p), err
		}
		if err := m.plain(m.rest[:i]); err != nil {
			return len(p), err
		}
		line := m.rest[i+len(m.nonce):]
		end := bytes.IndexByte(line, '\n')
		if end < 0 && len(line) < maxMark {
			m.rest = append(m.rest[:0], m.rest[i:]...)
			return len(p), nil
		}
		next := end + 1
		if end < 0 {
			end, next = len(line), len(line)
		}
		if err := m.line(line[:end], next > end); err != nil {
			return len(p), err
		}
		m.rest = append(m.rest[:0], line[next:]...)
	}
}

// close takes what is left for what it is.
func (m *marks) close() error {
	rest := m.rest
	m.rest = nil
	if bytes.HasPrefix(rest, m.nonce) {
		return m.line(rest[len(m.nonce):], false)
	}
	return m.plain(rest)
}

// gap is called when what comes doesn't follow what came: what was held back of
// that can't be completed.
func (m *marks) gap() {
	m.rest = nil
	m.lose()
}

// overlap is how much of the end of s may be the begin of mark.
func overlap(s, mark []byte) int {
	for n := min(len(s), len(mark)-1); n > 0; n-- {
		if bytes.HasPrefix(mark, s[len(s)-n:]) {
			return n
		}
	}
	return 0
}

func (m *marks) plain(p []byte) error {
	if !m.began || m.ended || len(p) == 0 {
		return nil
	}
	if m.console {
		p = bytes.ReplaceAll(p, []byte("\r"), nil)
	}
	_, err := m.stdout.Write(p)
	return err
}

func (m *marks) line(p []byte, whole bool) error {
	if m.ended {
		return nil
	}
	if !m.began && bytes.HasSuffix(p, []byte("\r")) {
		m.console = true
	}
	if m.console {
		p = bytes.TrimSuffix(p, []byte("\r"))
	}
	word, text, _ := strings.Cut(string(p), " ")
	if !m.began && slices.Contains(spoken, word) { // the line that says so is lost
		m.began = true
		m.lose()
	}
	switch word {
	case "s":
		m.began = true
	case "e":
		if whole {
			text += "\n"
		}
		fallthrough
	case "E":
		_, err := io.WriteString(m.stderr, text)
		return err
	case "u":
		for _, part := range strings.Fields(text) {
			m.cpu += clock(part)
		}
	case "m":
		if kib, err := strconv.ParseInt(text, 10, 50); err == nil && kib > 0 {
			m.peak = pcm.Bytes(kib) << 10
		}
	case "o":
		m.over = true
	case "b":
		if f := strings.Fields(text); len(f) == len(m.sizes) {
			m.sized = true
			for i := range f {
				n, err := strconv.ParseInt(f[i], 10, 62)
				m.sizes[i], m.sized = n, m.sized && err == nil && n >= 0
			}
		}
	case "f":
		m.fault, m.ended = text, true
	case "x":
		if code, err := strconv.Atoi(text); err == nil && code >= 0 && code <= 255 {
			m.code, m.ended = code, true
		}
	}
	return nil
}

// spoken are the words of a script whose task has begun.
var spoken = []string{"e", "E", "u", "m", "o", "b", "x"}

// clock reads a time as the shell prints it: "0m0.31s".
func clock(s string) time.Duration {
	d, err := time.ParseDuration(strings.ReplaceAll(s, ",", "."))
	if err != nil || d < 0 || d > 1e6*time.Second {
		return 0
	}
	return d
}
