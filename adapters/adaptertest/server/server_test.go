package server

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestProcesses(t *testing.T) {
	t.Setenv(envServers, "")
	f, err := NewFolder("test")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := f.Start("shell", []string{"X=ready"}, "/bin/sh", "-c", "echo $X; setsid sleep 300 & exec sleep 300")
	if err != nil {
		t.Fatal(err)
	}
	up := func(context.Context) error {
		if log, _ := os.ReadFile(p.Log); string(log) != "ready\n" || len(f.processes()) < 2 {
			return errors.New("not yet")
		}
		return nil
	}
	if err := p.Ready(ctx, up); err != nil {
		t.Fatal(err)
	}
	p.Hang()()
	p.Stop(10 * time.Second)
	if len(f.processes()) != 1 {
		t.Errorf("besides the one that left its session: %v", f.processes())
	}
	if err := f.Close(); err == nil || !strings.Contains(err.Error(), "sleep 300") {
		t.Errorf("what was left: %v", err)
	}
	if _, err := os.Stat(f.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", f.Dir, err)
	}
}

func TestNotReady(t *testing.T) {
	t.Setenv(envServers, "")
	f, err := NewFolder("test")
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Start("shell", nil, "/bin/sh", "-c", "echo no such disk; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = p.Ready(t.Context(), func(context.Context) error { return errors.New("no answer") })
	for _, want := range []string{"no answer", "exit status 3", "no such disk"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Need("sh", "no-such-server"); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "no-such-server") {
		t.Errorf("need: %v", err)
	}
}

func TestNoServers(t *testing.T) {
	t.Setenv(envServers, "none")
	if f, err := NewFolder("test"); !errors.Is(err, ErrMissing) {
		t.Errorf("a folder although none is wanted: %v, %v", f, err)
	}
}
