package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/jointcloud/pcm"
)

// print writes v as the output format says; draw makes the tables.
func (a *app) print(v any, draw func(t *table)) error {
	switch a.format {
	case "json":
		return a.printJSON(v)
	case "yaml":
		raw, err := json.Marshal(v)
		if err == nil {
			raw, err = yaml.JSONToYAML(raw)
		}
		if err != nil {
			return pcm.Errorf(pcm.Internal, "can't write the answer as YAML: %w", err)
		}
		_, err = a.out.Write(raw)
		return written(err)
	case "table", "wide":
		t := &table{wide: a.format == "wide", now: a.now()}
		draw(t)
		_, err := io.WriteString(a.out, t.String())
		return written(err)
	}
	return pcm.Errorf(pcm.Invalid, "-o %s is not an output format: table, wide, json or yaml%s", a.format, didYouMean(a.format, formats))
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return written(enc.Encode(v))
}

func written(err error) error {
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't write the output: %w", err)
	}
	return nil
}

// human tells whether a person reads the output, who may want hints.
func (a *app) human() bool { return a.format == "table" || a.format == "wide" }

// hint tells a person what they may want to do next.
func (a *app) hint(format string, args ...any) {
	if a.human() {
		fmt.Fprintf(a.errOut, format+"\n", args...)
	}
}

// table collects lines for a person: rows of columns, pairs, text.
type table struct {
	wide bool
	now  time.Time
	buf  bytes.Buffer
	rows [][]string
}

// row adds a row; all rows between two flushes are aligned with each other.
func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = plain(c)
	}
	t.rows = append(t.rows, cells)
}

// pair adds a line of a name and a value; nothing if the value is empty.
func (t *table) pair(name, format string, args ...any) {
	if v := fmt.Sprintf(format, args...); v != "" {
		t.row(name, v)
	}
}

// text ends the aligned block and adds lines as they are.
func (t *table) text(format string, args ...any) {
	t.flush()
	fmt.Fprintf(&t.buf, format+"\n", args...)
}

func (t *table) flush() {
	var aligned bytes.Buffer
	w := tabwriter.NewWriter(&aligned, 0, 8, 3, ' ', 0)
	for _, r := range t.rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush()
	for line := range bytes.Lines(aligned.Bytes()) {
		t.buf.Write(bytes.TrimRight(line, " \n"))
		t.buf.WriteByte('\n')
	}
	t.rows = nil
}

func (t *table) String() string {
	t.flush()
	return t.buf.String()
}

// id is an ID as the table shows it: short, whole in wide tables.
func id[T ~string](t *table, v T) string {
	if t.wide {
		return string(v)
	}
	return pcm.Short(v)
}

// age is the time since at.
func (t *table) age(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return humanDuration(t.now.Sub(at))
}

// plain keeps what another peer wrote from moving the terminal's cursor or the table's columns.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) || r == '\u2028' || r == '\u2029' || (r >= '\u202a' && r <= '\u202e') || (r >= '\u2066' && r <= '\u2069') {
			return ' '
		}
		return r
	}, s)
}

// humanDuration is a length of time in at most two units: 45s, 3m12s, 5h2m, 12d.
func humanDuration(d time.Duration) string {
	s := int(d / time.Second)
	switch {
	case s < 0:
		return "0s"
	case s < 120:
		return fmt.Sprintf("%ds", s)
	case s < 3*3600:
		return trimZero(fmt.Sprintf("%dm%ds", s/60, s%60), "0s")
	case s < 48*3600:
		return trimZero(fmt.Sprintf("%dh%dm", s/3600, s/60%60), "0m")
	}
	return fmt.Sprintf("%dd", s/86400)
}

// trimZero cuts a last unit of nought: "3m0s" is "3m", "3m10s" stays.
func trimZero(s, zero string) string {
	if rest, ok := strings.CutSuffix(s, zero); ok && (rest[len(rest)-1] < '0' || rest[len(rest)-1] > '9') {
		return rest
	}
	return s
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// isTerminal tells whether w is a terminal (or another character device).
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
