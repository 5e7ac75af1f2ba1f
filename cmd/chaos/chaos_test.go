package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

// TestMain lets the test's program be a peer, as the command is.
func TestMain(m *testing.M) {
	if os.Getenv(peerEnv) != "" {
		if err := servePeer(); err != nil {
			fmt.Fprintln(os.Stderr, "the peer has ended:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestChaos is the short form.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts real peers")
	}
	before, err := older(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := settings{
		seed: 1, faults: 200, operations: 10_000, attempts: 500, most: 6 * time.Minute, keep: os.Getenv("PCM_CHAOS_KEEP"),
		older: before, replicas: 1,
	}
	r, err := run(t.Context(), s)
	if r != nil {
		r.print(t.Output())
	}
	if err != nil {
		t.Error(err)
	}
	for _, f := range atRest[:shortLulls] {
		if err == nil && !slices.ContainsFunc(r.cells, func(n *nemesis) bool { return n.counts[f.name] != nil && n.counts[f.name].injected > 0 }) {
			t.Errorf("there was no %s", f.name)
		}
	}
	if r != nil && r.note != "" && require.Named("fuse") {
		t.Error(r.note)
	}
}

// TestPlaces: every text that a variant replaces is there once, and what takes its place is Go.
// Whether that does what it should, only [TestTeeth] and [TestChaos] find out.
func TestPlaces(t *testing.T) {
	for name, change := range map[string]func(string) (map[string]string, error){"teeth": plant, "older": before} {
		files, err := change(filepath.Join("..", ".."))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for path, text := range files {
			if _, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, b := range bugs {
			if name == "teeth" && !strings.Contains(files[b.file], fmt.Sprintf("planted(%q)", b.name)) {
				t.Errorf("no peer ever has the bug %q: %s doesn't ask for that name", b.name, b.file)
			}
		}
	}
}

// TestTeeth plants bugs, each of which must be caught by a promise that it breaks: a few of
// them with one seed, or all with as many as PCM_CHAOS_TEETH says.
func TestTeeth(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts real peers")
	}
	seeds, names := 1, []string{"accepted twice", "two voters", "void trades are awarded"}
	if text := os.Getenv("PCM_CHAOS_TEETH"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("PCM_CHAOS_TEETH is %q: how many seeds?", text)
		}
		seeds, names = n, nil
	}
	if err := teeth(t.Context(), t.Output(), "", 1, seeds, names); err != nil {
		t.Error(err)
	}
}
