package main

// Tasks run by the text of a shell, and what that text says in the job's output.

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

//go:embed script.sh
var scriptText string

func (d *Described) scripted() bool { return true }

// shellsOwn are variables that no script can set.
const shellsOwn = `^(_|IFS|E?UID|PPID|PWD|OLDPWD|SHLVL|SHELLOPTS|BASH.*|OPT(IND|ARG)|S?RANDOM|SECONDS|EPOCH.*|LINENO|HISTCMD|DIRSTACK|FUNCNAME|FUNCNEST|GROUPS)$`

const maxWords = 128 << 10

// prepare makes the text that brings the inputs, runs the task and takes its outputs away.
func (b *described) prepare(a *Attempt) error {
	if a.Note["script"] != nil {
		return nil
	}
	nonce := "pcm-" + strings.ToLower(rand.Text()) + "-"
	r := a.Request
	data, _ := plain(a.Note["data"]).(map[string]any)
	quote := func(words ...string) string {
		l := make([]any, len(words))
		for i, w := range words {
			l[i] = w
		}
		return asText(fShell(l))
	}
	web := func(u any) string {
		if s := asText(u); strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") {
			return s
		}
		return ""
	}
	var in, exports strings.Builder
	inputs, _ := path(data, "inputs").([]any)
	for i, x := range inputs {
		fmt.Fprintln(&in, "input", quote(strconv.Itoa(i), "tar", asText(path(x, "target")), web(path(x, "url"))))
	}
	var odd []string
	size := 0
	for _, k := range sortedKeys(r.Env) {
		size += len(k) + len(r.Env[k])
		if fMatches(k, "^[A-Za-z_][A-Za-z0-9_]*$") == true && fMatches(k, shellsOwn) != true {
			fmt.Fprintln(&exports, "export", quote(k+"="+r.Env[k]))
		} else {
			odd = append(odd, k+"="+r.Env[k])
		}
	}
	for _, w := range append(append([]string{}, r.Command...), r.Args...) {
		size += len(w)
	}
	if size > maxWords {
		return status.Errorf(codes.InvalidArgument, "command and environment have %d bytes: at most %d", size, maxWords)
	}
	given := ""
	if len(odd) > 0 { // by a program, which the task's own path may not have
		given = `set -- "$(command -v env)" -- ` + quote(odd...) + ` "$@"` + "\n"
	}
	outs := []string{}
	for _, o := range r.Outputs {
		outs = append(outs, filepath.Clean(o))
	}
	most := 2*r.OutputCapBytes + 16<<20
	if r.OutputCapBytes <= 0 || most < 0 {
		most = 1 << 40
	}
	limit := "unlimited"
	if r.OutputCapBytes > 0 {
		limit = strconv.FormatInt(r.OutputCapBytes/512+1, 10)
	}
	a.Note["nonce"] = nonce
	a.Note["script"] = strings.NewReplacer(
		"@KEY@", r.Key, "@NONCE@", nonce, "@NAME@", b.name(a), "@MOST@", strconv.FormatInt(most, 10), "@LIMIT@", limit,
		"@COMMAND@", quote(append(append([]string{}, r.Command...), r.Args...)...), "@EXPORTS@", given+strings.TrimSuffix(exports.String(), "\n"),
		"@INPUTS@", strings.TrimSuffix(in.String(), "\n"), "@OUTPUTS@", quote(outs...), "@PUT@", quote(web(path(data, "outputs", "url"))),
	).Replace(scriptText)
	return nil
}

// marks tell apart what is mixed in the output of a script.
type marks struct {
	Rest           []byte
	Began, Console bool
	Ended, Over    bool
	Code           int
	Fault          string
	CPU            time.Duration
	Peak           int64
	Until          time.Time // its last words are waited for
}

const maxMark = 1 << 20

// marks are those of an attempt: kept in its note.
func (a *Attempt) marks() *marks {
	if m, ok := a.Note["marks"].(*marks); ok {
		return m
	}
	m := &marks{}
	if raw, err := json.Marshal(a.Note["marks"]); err == nil && a.Note["marks"] != nil {
		_ = json.Unmarshal(raw, m) // of what was written here
	}
	a.Note["marks"] = m
	return m
}

// take sorts what has come of a log.
func (b *described) take(a *Attempt, stream, text string) error {
	if stream == "stderr" {
		return a.Write(stream, []byte(text))
	}
	m, nonce := a.marks(), []byte(asText(a.Note["nonce"]))
	m.Rest = append(m.Rest, text...)
	for {
		i := bytes.Index(m.Rest, nonce)
		if i < 0 {
			keep := 0
			for n := min(len(m.Rest), len(nonce)-1); n > 0 && keep == 0; n-- {
				if bytes.HasPrefix(nonce, m.Rest[len(m.Rest)-n:]) {
					keep = n
				}
			}
			err := m.plain(a, m.Rest[:len(m.Rest)-keep])
			m.Rest = bytes.Clone(m.Rest[len(m.Rest)-keep:])
			return err
		}
		if err := m.plain(a, m.Rest[:i]); err != nil {
			return err
		}
		line := m.Rest[i+len(nonce):]
		end := bytes.IndexByte(line, '\n')
		if end < 0 && len(line) < maxMark {
			m.Rest = bytes.Clone(m.Rest[i:])
			return nil
		}
		next := end + 1
		if end < 0 {
			end, next = len(line), len(line)
		}
		if err := m.line(a, line[:end], next > end); err != nil {
			return err
		}
		m.Rest = bytes.Clone(line[next:])
	}
}

func (m *marks) plain(a *Attempt, p []byte) error {
	if !m.Began || m.Ended {
		return nil
	}
	if m.Console {
		p = bytes.ReplaceAll(p, []byte("\r"), nil)
	}
	return a.Write("stdout", p)
}

func (m *marks) line(a *Attempt, p []byte, whole bool) error {
	if m.Ended {
		return nil
	}
	m.Console = m.Console || !m.Began && bytes.HasSuffix(p, []byte("\r"))
	if m.Console {
		p = bytes.TrimSuffix(p, []byte("\r"))
	}
	word, text, _ := strings.Cut(string(p), " ")
	m.Began = m.Began || word != "f"
	switch word {
	case "e", "E":
		if whole && word == "e" {
			text += "\n"
		}
		return a.Write("stderr", []byte(text))
	case "u":
		for _, part := range strings.Fields(text) {
			if d, err := time.ParseDuration(strings.ReplaceAll(part, ",", ".")); err == nil && d > 0 && d < 1e6*time.Second {
				m.CPU += d
			}
		}
	case "m":
		if kib, err := strconv.ParseInt(text, 10, 50); err == nil && kib > 0 {
			m.Peak = kib << 10
		}
	case "o":
		m.Over = true
	case "f":
		m.Fault, m.Ended = text, true
	case "x":
		if code, err := strconv.Atoi(text); err == nil && code >= 0 && code <= 255 {
			m.Code, m.Ended = code, true
		}
	}
	return nil
}

// lastWords waits a while for what tells how an ended job's task ended.
func (b *described) lastWords(_ context.Context, a *Attempt, ended bool) error {
	m := a.marks()
	if !ended || m.Ended {
		return nil
	}
	if m.Until.IsZero() {
		m.Until = time.Now().Add(15 * time.Second)
	}
	if time.Now().Before(m.Until) && !a.asked {
		return status.Error(codes.Unavailable, "the last lines of its output have not come")
	}
	return m.plain(a, m.Rest)
}

// says adds what the script said to what was seen.
func (b *described) says(a *Attempt, s Seen) Seen {
	m := a.marks()
	if m.CPU > 0 {
		s.CPU = m.CPU.Seconds()
	}
	s.Memory = max(s.Memory, m.Peak)
	if s.State.State != "ended" {
		return s
	}
	outcome := s.State.Outcome
	switch {
	case m.Fault != "":
		s.State.Outcome, s.State.Reason = "lost", m.Fault
	case m.Over:
		s.State.Outcome, s.State.Reason = "output", "its outputs are over the cap"
	case m.Ended && outcome != "memory" && !(outcome == "stopped" && a.asked):
		s.Code, s.Known = m.Code, true
		if s.State.Outcome = "ok"; m.Code != 0 {
			s.State.Outcome = "failed"
		}
		if a.asked {
			s.State.Outcome = "stopped"
		}
	case outcome == "ok":
		s.State.Outcome, s.State.Reason = "lost", "it ended without a word on how: the last lines of its output did not come"
	case a.asked:
		s.State.Outcome = "stopped"
	}
	return s
}
