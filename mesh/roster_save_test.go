package mesh

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Nothing is written when a process is killed: whom a founder has met must be in the
// file as soon as it has met them, and a crowd that comes must not wear out its disk.
func TestPeersFileIsWrittenAsPeersCome(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		key := pcm.NewKey()
		m := &Mesh{cfg: Config{
			Mesh: pcm.NewMeshID(key.Public()), Root: key.Public(), Now: time.Now, PeersFile: filepath.Join(dir, "peers"),
		}, log: slog.New(slog.DiscardHandler)}
		m.roster.news = make(chan struct{}, 1)
		ctx, end := context.WithCancel(t.Context())
		defer end()
		go m.saveLoop(ctx)

		has := func(id peer.ID) bool {
			synctest.Wait() // no time passes
			raw, _ := os.ReadFile(m.cfg.PeersFile)
			return bytes.Contains(raw, []byte(id.String()))
		}
		meet := func() peer.ID {
			k := pcm.NewKey()
			id, err := peer.Decode(string(k.Peer()))
			if err != nil {
				t.Fatal(err)
			}
			m.roster.met(id, pcm.Passport{Peer: k.Peer()}, pcm.Signed{Payload: []byte(k.Peer())}, []string{"/ip4/192.0.2.1/tcp/7419"}, time.Now())
			return id
		}
		first := meet()
		if !has(first) {
			t.Error("the first peer that came is not in the file")
		}
		second := meet()
		if has(second) {
			t.Error("the file was written twice at one moment")
		}
		time.Sleep(saveRest)
		if !has(second) {
			t.Errorf("the second peer is not in the file after %s", saveRest)
		}

		// Who merely comes back is not worth a write of its own.
		time.Sleep(saveRest)
		before, err := os.Stat(m.cfg.PeersFile)
		if err != nil {
			t.Fatal(err)
		}
		passport, signed := m.roster.peers[second].passport, m.roster.peers[second].signed
		m.roster.met(second, passport, signed, []string{"/ip4/192.0.2.1/tcp/7419"}, time.Now())
		synctest.Wait()
		if after, err := os.Stat(m.cfg.PeersFile); err != nil || !os.SameFile(before, after) {
			t.Errorf("the file was written for a peer that came back: %v", err)
		}
		time.Sleep(2 * saveEvery)
		synctest.Wait()
		if after, err := os.Stat(m.cfg.PeersFile); err != nil || os.SameFile(before, after) {
			t.Errorf("when it was seen last was not written at the interval: %v", err)
		}
	})
}
