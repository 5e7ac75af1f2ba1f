package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/node/api"
)

func TestDoctorCgroups(t *testing.T) {
	for name, c := range map[string]struct {
		files        map[string]string // made below the root; "" is a folder
		status, text string
	}{
		"version 2":         {map[string]string{"cgroup.controllers": "cpu memory pids\n"}, api.CheckOK, "version 2, controllers: cpu memory pids"},
		"without memory":    {map[string]string{"cgroup.controllers": "cpu\n"}, api.CheckWarn, "version 2, controllers: cpu"},
		"version 1":         {map[string]string{"memory": "", "pids": ""}, api.CheckOK, "version 1, controllers: memory pids"},
		"1, without memory": {map[string]string{"pids": ""}, api.CheckWarn, "none that can be used"},
		"none":              {nil, api.CheckWarn, "none that can be used"},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			var err error
			if text == "" {
				err = os.Mkdir(filepath.Join(root, file), 0o700)
			} else {
				err = os.WriteFile(filepath.Join(root, file), []byte(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		f := cgroupsAt(root, filepath.Join(root, "self"))
		if f.Status != c.status || !strings.HasPrefix(f.Text, c.text) || (f.Hint == "") != (f.Status == api.CheckOK) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestDoctorUserNamespaces(t *testing.T) {
	for name, c := range map[string]struct{ file, value, status string }{
		"allowed":   {"max_user_namespaces", "1000", api.CheckOK},
		"none":      {"max_user_namespaces", "0", api.CheckWarn},
		"Debian's":  {"unprivileged_userns_clone", "0", api.CheckWarn},
		"AppArmor":  {"apparmor_restrict_unprivileged_userns", "1", api.CheckWarn},
		"switch on": {"unprivileged_userns_clone", "1", api.CheckOK},
	} {
		f := checkUserNamespaces(func(path string) ([]byte, error) {
			if filepath.Base(path) == c.file {
				return []byte(c.value + "\n"), nil
			}
			return nil, errors.New("no such file")
		})
		if f.Status != c.status {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestDoctorDisk(t *testing.T) {
	cfg := DefaultConfig(filepath.Join(t.TempDir(), "not", "there"))
	cfg.Store.Reserve = "1PiB"
	list := checkDisk(cfg)
	if list[0].Status != api.CheckFail || !strings.Contains(list[0].Hint, "make room") {
		t.Errorf("a disk without room: %+v", list[0])
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := checkFsync(file); f.Status != api.CheckFail || f.Hint == "" {
		t.Errorf("a folder that can't be written to: %+v", f)
	}
}
