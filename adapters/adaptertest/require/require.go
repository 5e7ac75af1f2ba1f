// Package require ends tests of what is not on this machine: loudly, or as failures.
package require

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// Server ends a test whose server could not be started. One that is not installed is
// [Missing]; everything else is a failure.
func Server(t testing.TB, name string, err error) {
	t.Helper()
	if errors.Is(err, server.ErrMissing) {
		Missing(t, name, err)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// Missing ends a test for which this machine lacks something, err says why: it is
// skipped, loudly, or fails if PCM_TEST_REQUIRE names that.
func Missing(t testing.TB, name string, err error) {
	t.Helper()
	if Named(name) {
		t.Fatalf("%s: %v", name, err)
	}
	t.Skipf("%s IS NOT TESTED HERE: %v", strings.ToUpper(name), err)
}

// Named tells whether PCM_TEST_REQUIRE, a list with commas, names it.
func Named(name string) bool {
	return slices.Contains(strings.Split(os.Getenv("PCM_TEST_REQUIRE"), ","), name)
}
