package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// A script in a body is read line by line, and only its begin.
func TestShowBody(t *testing.T) {
	if got := showBody(`{"a":1}`); !slices.Equal(got, []string{`{"a":1}`}) {
		t.Errorf("%q", got)
	}
	body, err := json.Marshal(map[string]any{"count": 3, "ratio": 0.5, "id": json.Number("12345678901234567890123"), "name": "n", "script": "set -e\n" + strings.Repeat("echo \x1b[31m\n", 100)})
	if err != nil {
		t.Fatal(err)
	}
	got := showBody(string(body))
	if len(got) != bodyLines+1 || !slices.Contains(got, "  set -e") || got[0] != "count: 3" || !slices.Contains(got, "ratio: 0.5") || !slices.Contains(got, "id: 12345678901234567890123") || !strings.HasPrefix(got[bodyLines], "… 7") || strings.Contains(strings.Join(got, ""), "\x1b") {
		t.Errorf("%q", got)
	}
	if got := showBody(strings.Repeat("x", 300)); len(got) != 1 || len(got[0]) != 300 {
		t.Errorf("%q", got)
	}
}
