package main

import (
	"os"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest"
)

// What docs says of lines is what is there. Built-in adapters change with every
// mend: theirs may be older by a tenth.
func TestLinesAreCurrent(t *testing.T) {
	now, err := count("../../..")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("../../../docs/adapters.lines.json")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := adaptertest.ReadLines(data)
	if err != nil || len(kept) != len(now) {
		t.Fatalf("docs/adapters.lines.json has %d adapters, %v; there are %d: go run ./adapters/adaptertest/matrix -count", len(kept), err, len(now))
	}
	for i, n := range now {
		k := kept[i]
		if n.Kind == "built in" && n.Written*10 <= k.Written*11 && n.Written*10 >= k.Written*9 {
			k.Written = n.Written
		}
		if k != n {
			t.Errorf("docs/adapters.lines.json has %+v, there are %+v: go run ./adapters/adaptertest/matrix -count", k, n)
		}
	}
}
