package main

import (
	"fmt"
	"os"
	"testing"
	"time"
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
	s := settings{seed: 1, faults: 200, operations: 10_000, attempts: 500, most: 6 * time.Minute, keep: os.Getenv("PCM_CHAOS_KEEP")}
	r, err := run(t.Context(), s)
	if r != nil {
		r.print(t.Output())
	}
	if err != nil {
		t.Error(err)
	}
}
