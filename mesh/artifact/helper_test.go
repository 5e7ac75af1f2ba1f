package artifact

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/jointcloud/pcm"
)

// site is a host on loopback with a store and a service.
type site struct {
	host.Host
	id    pcm.PeerID
	dir   string
	store *Store
	svc   *Service

	opened atomic.Int64                        // streams that this site opened
	cut    atomic.Int64                        // bytes that may still be read from streams opened here, if cutting
	wrap   func(network.Stream) network.Stream // of streams opened here; nil: none
}

func newSite(t testing.TB, change func(*ServiceConfig)) *site {
	t.Helper()
	key := pcm.NewKey()
	h, err := libp2p.New(libp2p.Identity(key.LibP2P()), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(tls.ID, tls.New), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	s := &site{Host: h, id: key.Peer(), dir: filepath.Join(t.TempDir(), "artifacts")}
	s.store = openStore(t, Config{Dir: s.dir})
	cfg := ServiceConfig{Store: s.store, Network: s, Allow: func(pcm.Passport, pcm.Digest) bool { return true }}
	if change != nil {
		change(&cfg)
	}
	s.svc = NewService(cfg)
	return s
}

func (s *site) meet(others ...*site) *site {
	for _, o := range others {
		s.Peerstore().AddAddrs(o.ID(), o.Addrs(), time.Hour)
	}
	return s
}

func (s *site) Stream(ctx context.Context, to pcm.PeerID, proto protocol.ID) (network.Stream, error) {
	id, err := peer.Decode(string(to))
	if err != nil {
		return nil, err
	}
	s.opened.Add(1)
	st, err := s.NewStream(ctx, id, proto)
	if err == nil && s.wrap != nil {
		st = s.wrap(st)
	}
	return st, err
}

func (s *site) Handle(proto protocol.ID, h func(context.Context, pcm.Passport, network.Stream)) {
	s.SetStreamHandler(proto, func(st network.Stream) {
		h(context.Background(), pcm.Passport{Peer: pcm.PeerID(st.Conn().RemotePeer().String())}, st)
	})
}

// cutAfter cuts every stream when n more bytes have been read by this site.
func (s *site) cutAfter(n int64) {
	s.cut.Store(n)
	s.wrap = func(st network.Stream) network.Stream { return &cutStream{st, s} }
}

type cutStream struct {
	network.Stream
	s *site
}

func (c *cutStream) Read(p []byte) (int, error) {
	if c.s.cut.Load() <= 0 {
		c.Stream.Reset()
		return 0, network.ErrReset
	}
	n, err := c.Stream.Read(p)
	c.s.cut.Add(-int64(n))
	return n, err
}

func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		<-s.scanned
		removeTree(filepath.Join(cfg.Dir, dirShared)) // read-only folders
	})
	return s
}

// random is n bytes that depend on seed alone.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	r.Read(b)
	return b
}

// write makes files under a new folder: names ending in "/" are folders, values
// beginning with "->" links.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(p), 0o755); err == nil {
			if target, ok := strings.CutPrefix(content, "->"); ok {
				err = os.Symlink(target, p)
			} else {
				err = os.WriteFile(p, []byte(content), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// snapshot reads a folder or file as write takes it, with modes.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			out[rel+"/"] = ""
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			out[rel] = "->" + target
			return err
		default:
			b, err := os.ReadFile(p)
			out[rel] = fmt.Sprintf("%o %s", info.Mode().Perm()&0o111, b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustImport(t testing.TB, s *Store, p string, owners ...string) pcm.Digest {
	t.Helper()
	d, _, err := s.Import(t.Context(), p, owners...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// importBytes stores one file.
func importBytes(t testing.TB, s *Store, data []byte, owners ...string) pcm.Digest {
	t.Helper()
	p := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(p, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return mustImport(t, s, p, owners...)
}

func readAll(t testing.TB, s *Store, d pcm.Digest, p string, offset int64) []byte {
	t.Helper()
	r, err := s.ReadFile(t.Context(), d, p, offset)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantCode(t testing.TB, err error, code pcm.Code, parts ...string) {
	t.Helper()
	if pcm.ErrorCode(err) != code {
		t.Fatalf("got %q: %v; want %q", pcm.ErrorCode(err), err, code)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error %q doesn't name %q", err, p)
		}
	}
}

// files counts what lies under a folder of the store.
func files(t testing.TB, s *Store, folder string) (n int) {
	t.Helper()
	filepath.WalkDir(filepath.Join(s.dir, folder), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return nil
	})
	return n
}

// damage changes a byte in every chunk on disk, or only in those that pick chooses.
func damage(t testing.TB, s *Store, folder string, pick func(name string) bool) (n int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(s.dir, folder), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || pick != nil && !pick(d.Name()) {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		n++
		return os.WriteFile(p, b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func equal(t testing.TB, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("content differs: %d bytes, want %d", len(got), len(want))
	}
}
