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

// Server ends a test whose server could not be started. A server that is not
// installed is skipped, loudly, unless PCM_TEST_REQUIRE names it; everything else
// is a failure.
func Server(t testing.TB, name string, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, server.ErrMissing) && !Named(name):
		t.Skipf("%s IS NOT TESTED HERE: %v", strings.ToUpper(name), err)
	default:
		t.Fatalf("%s: %v", name, err)
	}
}

// Named tells whether PCM_TEST_REQUIRE, a list with commas, names it.
func Named(name string) bool {
	return slices.Contains(strings.Split(os.Getenv("PCM_TEST_REQUIRE"), ","), name)
}
