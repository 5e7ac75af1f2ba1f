package rest

import (
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

var (
	identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	shellsOwn  = regexp.MustCompile(ShellsOwn)
)

// shell quotes words for a POSIX shell.
func shell(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

// environ is the task's environment without what only its place knows.
func environ(t adapters.Task) []string {
	var all []string
	for _, v := range supervisor.Environ(t, "", "") {
		name, _, _ := strings.Cut(v, "=")
		if _, given := t.Env[name]; given || name != "PATH" && name != "HOME" {
			all = append(all, v)
		}
	}
	return all
}

// script is the text that brings the inputs, runs the task and takes its outputs
// away, where the back end has no more than a shell; see description.Task. Its own
// words stand behind the nonce: see marks.
//
// Where the log keeps its end only, the task is ended when its output is over its
// cap, as nobody else can tell.
func script(t adapters.Task, name, nonce string, data map[string]any, tail bool) string {
	var in strings.Builder
	inputs, _ := data["inputs"].([]any)
	for i, v := range inputs {
		m, _ := v.(map[string]any)
		target := path.Clean(t.Inputs[i].Target)
		url, _ := m["url"].(string)
		if !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "http://") {
			url = ""
		}
		kind := "tar"
		if data["pack"] == "files" {
			kind = "file"
			if m["folder"] == true {
				kind = "folder"
			}
		}
		in.WriteString("input " + shell(strconv.Itoa(i), kind, target, url) + "\n")
	}
	var exports strings.Builder
	var odd []string
	for _, v := range environ(t) {
		if k, _, _ := strings.Cut(v, "="); identifier.MatchString(k) && !shellsOwn.MatchString(k) {
			exports.WriteString("export " + shell(v) + "\n")
		} else {
			odd = append(odd, v)
		}
	}
	given := ""
	if len(odd) > 0 { // by a program, which the task's own path may not have
		given = `set -- "$(command -v env)" -- ` + shell(odd...) + ` "$@"` + "\n"
	}
	var outs []string
	for _, o := range t.Outputs {
		outs = append(outs, path.Clean(o))
	}
	out, _ := data["outputs"].(map[string]any)
	put, _ := out["url"].(string)
	if !strings.HasPrefix(put, "https://") && !strings.HasPrefix(put, "http://") {
		put = ""
	}
	var headers strings.Builder
	if more, ok := out["headers"].(map[string]any); ok {
		for k, v := range more {
			if s, ok := v.(string); ok {
				headers.WriteString(" -H " + shell(k+": "+s))
			}
		}
	}
	most := 2*int64(t.OutputCap) + 16<<20
	if t.OutputCap <= 0 || most < 0 {
		most = 1 << 40
	}
	limit := "unlimited"
	if t.OutputCap > 0 {
		limit = strconv.FormatInt(int64(t.OutputCap)/512+1, 10)
	}
	spills := ""
	if tail {
		spills = spillScript(data)
	}
	return fill(layout(tail), map[string]string{
		"KEY": t.Key.String(), "NONCE": nonce, "NAME": name, "MOST": strconv.FormatInt(most, 10), "LIMIT": limit,
		"COMMAND": shell(append(append([]string{}, t.Command...), t.Args...)...), "EXPORTS": given + strings.TrimSuffix(exports.String(), "\n"),
		"INPUTS": strings.TrimSuffix(in.String(), "\n"), "OUTPUTS": shell(outs...), "PUT": shell(put),
		"HEADERS": headers.String(), "FILES": strconv.FormatBool(data["pack"] == "files"), "SPILL": strings.TrimSuffix(spills, "\n"),
	})
}

// checkScript refuses what can't go into a script.
func checkScript(t adapters.Task) error {
	size := 0
	for _, w := range append(append(append([]string{}, t.Command...), t.Args...), environ(t)...) {
		size += len(w)
	}
	if size > maxWords {
		return pcm.Errorf(pcm.TooLarge, "command and environment have %d bytes: at most %d", size, maxWords)
	}
	return nil
}

const maxWords = 128 << 10
