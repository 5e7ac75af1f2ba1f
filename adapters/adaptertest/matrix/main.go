// Command matrix compares what the conformance suite has found in a run with what
// is kept in docs/adapters.json, or keeps it, and renders docs/adapters.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jointcloud/pcm/adapters/adaptertest"
)

func main() {
	run := flag.String("run", "", "file that PCM_TEST_MATRIX named in the run")
	docs := flag.String("docs", "docs", "folder of adapters.json and adapters.md")
	write := flag.Bool("write", false, "keep what the run found, instead of failing when that differs")
	flag.Parse()
	if err := matrix(*run, *docs, *write); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func matrix(run, docs string, write bool) error {
	kept, err := read(filepath.Join(docs, "adapters.json"))
	if err != nil && !(write && os.IsNotExist(err)) {
		return err
	}
	found, err := read(run)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("%s holds no findings: no conformance suite has run", run)
	}
	if write {
		all := kept.With(found)
		if err := os.WriteFile(filepath.Join(docs, "adapters.json"), all.Encode(), 0o644); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(docs, "adapters.md"), []byte(all.Page()), 0o644)
	}
	differences := kept.Differences(found)
	for _, d := range differences {
		fmt.Fprintln(os.Stderr, d)
	}
	if len(differences) > 0 {
		return fmt.Errorf("the run differs from what %s keeps: mend that, or keep it with 'make test-backends MATRIX=-write' and commit it", docs)
	}
	fmt.Printf("%d adapters do what %s says\n", len(found), filepath.Join(docs, "adapters.md"))
	return nil
}

func read(name string) (adaptertest.Matrix, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return adaptertest.Matrix{}, err
	}
	return adaptertest.ReadFindings(data)
}
