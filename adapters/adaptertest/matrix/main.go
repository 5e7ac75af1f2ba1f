// Command matrix compares what the conformance suite has found in a run with what
// is kept in docs/adapters.json, or keeps it, and renders docs/adapters.md. With -count
// it counts how many lines each adapter has.
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
	counting := flag.Bool("count", false, "count the lines of all adapters of the tree here, and render them")
	write := flag.Bool("write", false, "keep what the run found, instead of failing when that differs")
	some := flag.Bool("some", false, "the run is of some adapters only")
	flag.Parse()
	var err error
	if *counting {
		err = recount(*docs)
	} else {
		err = matrix(*run, *docs, *write, *some)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func matrix(run, docs string, write, some bool) error {
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
		return render(docs, all)
	}
	differences := kept.Differences(found, some)
	for _, d := range differences {
		fmt.Fprintln(os.Stderr, d)
	}
	if len(differences) > 0 {
		return fmt.Errorf("the run differs from what %s keeps: mend that, or keep it with MATRIX=-write and commit it", docs)
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

// recount counts the lines of the adapters, keeps that and renders it.
func recount(docs string) error {
	all, err := count(".")
	if err != nil {
		return err
	}
	data, err := encodeLines(all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(docs, "adapters.lines.json"), data, 0o644); err != nil {
		return err
	}
	kept, err := read(filepath.Join(docs, "adapters.json"))
	if err != nil {
		return err
	}
	return render(docs, kept)
}

// render writes the page of what is kept.
func render(docs string, m adaptertest.Matrix) error {
	data, err := os.ReadFile(filepath.Join(docs, "adapters.lines.json"))
	if err != nil {
		return err
	}
	lines, err := adaptertest.ReadLines(data)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(docs, "adapters.md"), []byte(m.Page(lines)), 0o644)
}
