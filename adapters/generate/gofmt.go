package generate

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// gofmt formats Go as the tool of that name does: the one of the author's Go, who
// needs that anyway. In this program it would take 300 KiB for all who never generate Go.
func gofmt(text []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	program, err := findGofmt(ctx)
	if err != nil {
		return nil, err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, program)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &out, &said
	if err := cmd.Run(); err != nil {
		return nil, pcm.Errorf(pcm.Internal, "gofmt: %w: %.200s", err, said.String())
	}
	return out.Bytes(), nil
}

func findGofmt(ctx context.Context) (string, error) {
	if program, err := exec.LookPath("gofmt"); err == nil {
		return program, nil
	}
	// Distributions link only go itself to where programs are looked for.
	if root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output(); err == nil {
		if program, err := exec.LookPath(filepath.Join(strings.TrimSpace(string(root)), "bin", "gofmt")); err == nil {
			return program, nil
		}
	}
	return "", pcm.Errorf(pcm.Refused, "a project in Go is formatted by gofmt, which is not here: install Go (https://go.dev/dl), or put its bin folder into PATH")
}
