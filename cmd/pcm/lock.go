package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// lockData makes the data folder and takes its lock, which the kernel lets go of
// when this process ends, however it ends.
func lockData(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "can't make the data folder: %w; name another with --data", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // one that was there already may be open to others
		return nil, pcm.Errorf(pcm.Invalid, "the data folder must belong to you: %w; name another with --data", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "can't lock the data folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, pcm.Errorf(pcm.Internal, "can't lock the data folder %s: %w", dir, err)
		}
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0) // the PID is for people: without it the message is shorter
		holder := ""
		if pid := strings.TrimSpace(string(b[:n])); pid != "" {
			holder = " by process " + pid
		}
		return nil, pcm.Errorf(pcm.Conflict, "the data folder %s is in use%s: stop that node with 'pcm down --data %s', or give this one another folder with --data", dir, holder, dir)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			f.Close()
			return nil, pcm.Errorf(pcm.Internal, "can't write %s: %w; is the disk full?", path, err)
		}
	}
	return func() { f.Close() }, nil
}

// lockHeld tells whether a node runs on the data folder, if that can be seen from here.
func lockHeld(dir string) (held, known bool) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return false, false
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return errors.Is(err, unix.EWOULDBLOCK), err == nil || errors.Is(err, unix.EWOULDBLOCK)
}

// writeAddr notes where the API listens, for people and scripts.
func writeAddr(dir, addr string) error {
	path := filepath.Join(dir, api.AddrFile)
	if err := os.WriteFile(path+".tmp", []byte(addr+"\n"), 0o600); err != nil {
		return pcm.Errorf(pcm.Internal, "can't note the API's address: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return pcm.Errorf(pcm.Internal, "can't note the API's address: %w", err)
	}
	return nil
}

// readAddr is where the node of this data folder has, or last had, its API; "" if unknown.
func readAddr(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, api.AddrFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}
