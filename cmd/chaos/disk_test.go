package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

func someDisk(t *testing.T) (d *disk, dir string) {
	t.Helper()
	d, err := newDisk(t.TempDir())
	if err != nil {
		if require.Named("fuse") {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v", err)
	}
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	if dir, err = d.folder("a"); err != nil {
		t.Fatal(err)
	}
	return d, dir
}

// No process that is started has a disk's connection: with it, a killed harness would
// leave a mount that hangs.
func TestDiskIsNotInherited(t *testing.T) {
	someDisk(t)
	out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("a child has it:\n%s", out)
	}
}

// When the power goes, a file is as it was at its last fsync: what was overwritten,
// appended or cut off since is as before.
func TestDiskLosesWhatWasNotSynced(t *testing.T) {
	d, dir := someDisk(t)
	path := filepath.Join(dir, "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	must := func(_ int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.WriteString("0123456789"))
	must(0, f.Sync())
	must(f.WriteAt([]byte("xx"), 2))
	must(0, f.Truncate(5))
	must(f.WriteAt([]byte("more"), 8))
	must(0, os.Rename(path, path+"2"))
	must(0, f.Close())
	if got, _ := os.ReadFile(path + "2"); string(got) != "01xx4\x00\x00\x00more" {
		t.Fatalf("before: %q", got)
	}
	lost, err := d.cutPower(t.Context(), "a")
	if err != nil || lost == 0 {
		t.Fatalf("lost %d, %v", lost, err)
	}
	if got, _ := os.ReadFile(path + "2"); string(got) != "0123456789" {
		t.Errorf("after: %q", got)
	}
	if lost, err := d.cutPower(t.Context(), "a"); lost != 0 || err != nil {
		t.Errorf("a second time: %d, %v", lost, err)
	}
}

// A mapped file is written at the latest when it is closed, and lost like any other.
func TestDiskLosesMappedWrites(t *testing.T) {
	d, dir := someDisk(t)
	path := filepath.Join(dir, "map")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, 8192, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	m[5000] = 'x'
	if err := syscall.Munmap(m); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if lost, err := d.cutPower(t.Context(), "a"); err != nil || lost == 0 {
		t.Fatalf("lost %d, %v", lost, err)
	}
	if got, _ := os.ReadFile(path); len(got) != 8192 || got[5000] != 0 {
		t.Errorf("it is still there, of %d bytes", len(got))
	}
}

func TestDiskFails(t *testing.T) {
	d, dir := someDisk(t)
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("0123456789"); err != nil {
		t.Fatal(err)
	}
	d.of("a").set(func(f *folder) { f.failing = true })
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync: %v", err)
	}
	d.of("a").set(func(f *folder) { f.failing, f.full = false, true })
	if _, err := f.WriteString("more"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		t.Errorf("what needs no room: %v", err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil || st.Bavail != 0 {
		t.Errorf("%d blocks free, %v", st.Bavail, err)
	}
	d.of("a").set(func(f *folder) { f.full = false })
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if n := d.of("a").refused; n < 3 {
		t.Errorf("%d refusals", n)
	}
}
