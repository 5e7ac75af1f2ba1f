package main

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/jointcloud/pcm"
)

var instanceWord = regexp.MustCompile(`^i-[a-z2-7]{26}$`)

// instance names the data folder at back ends that several nodes share: what
// bears another name there is another node's. It is made with the first use. The
// folder's path would not do, which is the same on most machines.
func instance(data string) (string, error) {
	dir := filepath.Join(data, "tasks")
	name := filepath.Join(dir, "instance")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", pcm.Errorf(pcm.Unavailable, "can't make the folder of tasks: %w", err)
	}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		id := "i-" + strings.ToLower(rand.Text())
		tmp := name + "." + id
		if err = os.WriteFile(tmp, []byte(id+"\n"), 0o600); err == nil {
			err = os.Link(tmp, name) // the first one stays
		}
		os.Remove(tmp)
		if err == nil || errors.Is(err, fs.ErrExist) {
			text, err = os.ReadFile(name)
		}
	}
	if err != nil {
		return "", pcm.Errorf(pcm.Unavailable, "can't read or make this node's name at its back ends: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if !instanceWord.MatchString(id) {
		return "", pcm.Errorf(pcm.Unavailable, "%s is damaged: remove it when no task of this node is left in Slurm or Kubernetes", name)
	}
	return id, nil
}
