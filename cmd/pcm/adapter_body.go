package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
)

const (
	shortBody = 200 // bytes of a body that stays on one line
	bodyLines = 30  // of a longer one that are shown
)

// asWritten has numbers stay as they stand in JSON.
var asWritten = yaml.CustomMarshaler(func(n json.Number) ([]byte, error) { return []byte(n), nil })

// showBody is what a request or an answer holds, in lines: JSON that is long comes
// as YAML, so that the scripts in it can be read, and only its begin.
func showBody(body string) []string {
	if body = strings.TrimSpace(body); len(body) <= shortBody {
		return []string{plain(body)}
	}
	text := body
	var v any
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	if d.Decode(&v) == nil && !d.More() {
		if out, err := yaml.MarshalWithOptions(v, yaml.UseLiteralStyleIfMultiline(true), asWritten); err == nil {
			text = string(out)
		}
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if more := len(lines) - bodyLines; more > 0 {
		lines = append(lines[:bodyLines:bodyLines], fmt.Sprintf("… %s more: -o json shows all", plural(more, "line")))
	}
	for i, l := range lines {
		lines[i] = plain(l)
	}
	return lines
}
