package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/jointcloud/pcm"
)

// Files in a node's data folder that concern the API.
const (
	SocketFile = "api.sock" // the unix socket, mode 0600
	TokenFile  = "token"    // the token, mode 0600
	AddrFile   = "api.addr" // HOST:PORT of the API over TCP, one line
)

// maxSocketPath is the longest path that a unix socket's address can hold, less its final NUL.
const maxSocketPath = 107

// viaDir gives f a path of the socket in dir that fits a socket address. Long
// folders are reached through an open descriptor.
func viaDir(dir string, f func(path string) error) error {
	path := filepath.Join(dir, SocketFile)
	if len(path) <= maxSocketPath {
		return f(path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketFile))
}

// ListenUnix listens on the unix socket in the data folder dir. The caller holds
// the folder's lock, so a socket that is there is left over and is replaced.
func ListenUnix(dir string) (net.Listener, error) {
	path := filepath.Join(dir, SocketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, pcm.Errorf(pcm.Internal, "can't replace the left-over socket %s: %w", path, err)
	}
	var l net.Listener
	err := viaDir(dir, func(p string) error {
		ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
		if err != nil {
			return err
		}
		ul.SetUnlinkOnClose(false) // p may name a descriptor that is another folder by then
		l = ul
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		if l != nil {
			l.Close()
		}
		return nil, pcm.Errorf(pcm.Internal, "can't listen on the socket %s: %w", path, err)
	}
	return l, nil
}

func dialUnix(ctx context.Context, dir string) (net.Conn, error) {
	var c net.Conn
	err := viaDir(dir, func(p string) (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "unix", p)
		return err
	})
	return c, err
}

// EnsureToken reads the API's token from the data folder; at the first start it
// draws one: 32 random bytes in hex.
func EnsureToken(dir string) (string, error) {
	token, err := ReadToken(dir)
	if err != nil || token != "" {
		return token, err
	}
	var b [32]byte
	rand.Read(b[:]) // never fails since Go 1.24
	token = hex.EncodeToString(b[:])
	path := filepath.Join(dir, TokenFile)
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(token+"\n"), 0o600); err != nil {
		return "", pcm.Errorf(pcm.Internal, "can't write the API's token: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", pcm.Errorf(pcm.Internal, "can't write the API's token: %w", err)
	}
	return token, nil
}

// ReadToken reads the token; "" without an error if there is none.
func ReadToken(dir string) (string, error) {
	path := filepath.Join(dir, TokenFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", pcm.Errorf(pcm.Forbidden, "can't read the API's token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", pcm.Errorf(pcm.Internal, "the token file %s is empty: delete it and restart the node to get a new token", path)
	}
	return token, nil
}
