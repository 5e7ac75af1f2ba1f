package container

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jointcloud/pcm"
)

// An engine without root ignores limits or numbers users in its own way: nothing
// is sold on it, and the operator is told why.
func TestRootless(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var root atomic.Bool
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		switch _, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); what {
		case "version":
			io.WriteString(w, `{"Version":"4.3.1","ApiVersion":"1.41","MinAPIVersion":"1.24"}`)
		case "info":
			options := `["name=seccomp,profile=default","name=rootless"]`
			if root.Load() {
				options = `["name=seccomp,profile=default"]`
			}
			io.WriteString(w, `{"OSType":"linux","NCPU":2,"MemTotal":1024,"CgroupVersion":"2","SecurityOptions":`+options+`}`)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-served })
	e, err := openEngine("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.current(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "without root") {
		t.Errorf("an engine that says it has no root: %v", err)
	}
	root.Store(true)
	uid, err := e.owner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := e.current(t.Context())
	if uid == 0 && (err != nil || f.cpus != 2) || uid != 0 && pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("an engine of user %d: %+v, %v", uid, f, err)
	}
}
