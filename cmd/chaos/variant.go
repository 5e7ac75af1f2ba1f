package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jointcloud/pcm"
)

// variant builds this program from other sources: some files of the module, by their
// path within it, have another content, or are there in addition. The sources
// themselves stay as they are. It needs the module's sources and the go command.
func variant(ctx context.Context, dir, name string, change func(root string) (map[string]string, error)) (program string, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("not within the module: %w", err)
	}
	root := strings.TrimSpace(string(out))
	files, err := change(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for _, path := range sortedKeys(files) {
		file := filepath.Join(dir, fmt.Sprintf("%s%d.go", name, len(replace)))
		if err := os.WriteFile(file, []byte(files[path]), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, path)] = file
	}
	overlay := filepath.Join(dir, name+".json")
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		return "", err
	}
	program = filepath.Join(dir, name)
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-ldflags=-s -w", "-overlay", overlay, "-o", program, "github.com/jointcloud/pcm/cmd/chaos")
	build.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("can't build a program from other sources: %w\n%s", err, out)
	}
	return program, nil
}

// replaceOnce changes a text at its one place.
func replaceOnce(text, old, with string) (string, error) {
	if n := strings.Count(text, old); n != 1 {
		return "", fmt.Errorf("%q is there %d times", old, n)
	}
	return strings.Replace(text, old, with, 1), nil
}

// older builds a program whose peers are of the release before.
func older(ctx context.Context, dir string) (program string, err error) {
	return variant(ctx, dir, "older", before)
}

// before makes sources that speak the rules of the ledger up to one level less, and stop
// at an entry that goes beyond.
func before(root string) (map[string]string, error) {
	data, err := os.ReadFile(filepath.Join(root, "setting.go"))
	if err != nil {
		return nil, err
	}
	text, err := replaceOnce(string(data), fmt.Sprintf("\nconst LedgerLevel = %d\n", pcm.LedgerLevel), fmt.Sprintf("\nconst LedgerLevel = %d\n", pcm.LedgerLevel-1))
	if err != nil {
		return nil, fmt.Errorf("setting.go has no level any more: %w", err)
	}
	return map[string]string{"setting.go": text}, nil
}
