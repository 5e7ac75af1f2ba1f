package artifact

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/semaphore"
)

// Network is what a Service needs of the mesh: streams to and from peers whose
// passports have been checked.
type Network interface {
	Stream(ctx context.Context, to pcm.PeerID, proto protocol.ID) (network.Stream, error)
	Handle(proto protocol.ID, h func(ctx context.Context, from pcm.Passport, s network.Stream))
}

// Limits of a Service. Zero fields have the defaults.
type Limits struct {
	MaxBytes pcm.Bytes // content that one Fetch or FetchAll may bring in; default 1 TiB
	Streams  int       // in parallel to one peer for one fetch; default 4, at most 8
}

// ServiceConfig is what a Service is made of.
type ServiceConfig struct {
	Store   *Store
	Network Network
	// Allow says who may read which artifact. Default: nobody anything.
	Allow  func(from pcm.Passport, root pcm.Digest) bool
	Limits Limits
	Logger *slog.Logger // default: none
}

// Service serves a store's artifacts to other peers and fetches theirs. It is
// safe for concurrent use.
//
// Bulk data doesn't starve what else the connections carry: the number of its
// streams is bounded on both sides, and each has at most about 8 MiB asked for ahead.
type Service struct {
	cfg ServiceConfig
	log *slog.Logger

	bulk  *semaphore.Weighted // streams by which we fetch
	slots *semaphore.Weighted // requests that we serve at the same time

	mu      sync.Mutex
	flights map[sum]*flight
	guests  map[pcm.PeerID]*guest
	members []*members // of the artifacts served last, newest first; at most cachedMembers

	bytesIn, bytesOut, requests, blobsIn atomic.Int64
}

// guest is a peer that is being served; n is guarded by Service.mu.
type guest struct {
	n     int // streams
	slots *semaphore.Weighted
}

const cachedMembers = 4

// NewService begins to serve, and is ready to fetch.
func NewService(cfg ServiceConfig) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Allow == nil {
		cfg.Allow = func(pcm.Passport, pcm.Digest) bool { return false }
	}
	if cfg.Limits.MaxBytes <= 0 {
		cfg.Limits.MaxBytes = 1 << 40
	}
	if cfg.Limits.Streams <= 0 {
		cfg.Limits.Streams = 4
	}
	cfg.Limits.Streams = min(cfg.Limits.Streams, perPeerStreams)
	s := &Service{
		cfg: cfg, log: cfg.Logger,
		bulk: semaphore.NewWeighted(clientStreams), slots: semaphore.NewWeighted(serverSlots),
		flights: map[sum]*flight{}, guests: map[pcm.PeerID]*guest{},
	}
	cfg.Network.Handle(Protocol, s.serve)
	return s
}

// Counters tell what a Service has done since it was made.
type Counters struct {
	BytesIn  int64 // content received, headers not counted
	BytesOut int64 // content served
	Requests int64 // sent: round trips, were they not pipelined
	BlobsIn  int64 // received
}

// Counters reads the counters.
func (s *Service) Counters() Counters {
	return Counters{s.bytesIn.Load(), s.bytesOut.Load(), s.requests.Load(), s.blobsIn.Load()}
}

// enter counts a stream of a peer; nil if it has too many.
func (s *Service) enter(p pcm.PeerID) *guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[p]
	if g == nil {
		g = &guest{slots: semaphore.NewWeighted(perPeerSlots)}
		s.guests[p] = g
	}
	if g.n >= perPeerStreams {
		return nil
	}
	g.n++
	return g
}

func (s *Service) leave(p pcm.PeerID, g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.n--; g.n == 0 {
		delete(s.guests, p)
	}
}

// serve answers requests on one stream until the client closes it, is idle for
// too long, or asks for what makes no sense.
func (s *Service) serve(ctx context.Context, from pcm.Passport, st network.Stream) {
	stop := context.AfterFunc(ctx, func() { st.Reset() })
	defer stop()
	g := s.enter(from.Peer)
	if g == nil {
		st.SetDeadline(time.Now().Add(blobWait))
		if req, err := readRequest(st); err == nil {
			for range req.wanted() {
				if writeAnswer(st, statusBusy, []byte("too many streams of yours are open here")) != nil {
					break
				}
			}
		}
		st.Close()
		return
	}
	defer s.leave(from.Peer, g)
	w := &answers{st: st, w: bufio.NewWriterSize(st, 64<<10)}
	in := bufio.NewReaderSize(st, 4<<10)
	for {
		st.SetReadDeadline(time.Now().Add(requestWait))
		req, err := readRequest(in)
		if err == io.EOF {
			st.Close()
			return
		}
		if err != nil {
			var pe *pcm.Error
			if errors.As(err, &pe) {
				s.log.Warn("refused a request for artifacts", "peer", from.Peer, "error", err)
			}
			st.Reset()
			return
		}
		if err := s.answer(ctx, from, g, req, w); err != nil {
			s.log.Debug("stopped serving artifacts", "peer", from.Peer, "error", err)
			st.Reset()
			return
		}
	}
}

// answers writes to a stream, giving each blob its time.
type answers struct {
	st network.Stream
	w  *bufio.Writer
	// members of the artifact served last on this stream
	root sum
	last *members
}

func (a *answers) write(st status, data []byte) error {
	a.st.SetWriteDeadline(time.Now().Add(blobWait))
	return writeAnswer(a.w, st, data)
}

// answer serves one request in its turn.
func (s *Service) answer(ctx context.Context, from pcm.Passport, g *guest, req request, w *answers) error {
	wait, cancel := context.WithTimeout(ctx, slotWait)
	defer cancel()
	for _, sem := range []*semaphore.Weighted{g.slots, s.slots} {
		if sem.Acquire(wait, 1) != nil {
			for range req.wanted() {
				if err := w.write(statusBusy, []byte("too many transfers are under way here")); err != nil {
					return err
				}
			}
			return w.w.Flush()
		}
		defer sem.Release(1)
	}
	bp := chunkBufs.Get().(*[]byte)
	defer chunkBufs.Put(bp)
	for _, it := range req.Items {
		if err := s.answerItem(from, it, w, *bp); err != nil {
			return err
		}
	}
	return w.w.Flush()
}

func (s *Service) answerItem(from pcm.Passport, it item, w *answers, buf []byte) error {
	root := sum(it.Root)
	wanted := len(it.Blobs) / sumSize
	if it.Tree {
		wanted++
	}
	all := func(st status, note string) error {
		for range wanted {
			if err := w.write(st, []byte(note)); err != nil {
				return err
			}
		}
		return nil
	}
	if !s.cfg.Allow(from, root.digest()) {
		return all(statusForbidden, "you may not read this artifact")
	}
	store := s.cfg.Store
	store.touch(root)
	if it.Tree {
		data, err := store.manifest(root)
		if err := s.reply(w, data, err); err != nil {
			return err
		}
	}
	if len(it.Blobs) == 0 {
		return nil
	}
	wanted = len(it.Blobs) / sumSize
	m, err := s.membersOf(root, w)
	if err != nil {
		return all(statusMissing, "this artifact is not here")
	}
	for b := range slices.Chunk(it.Blobs, sumSize) {
		name := sum(b)
		if !m.has(name) {
			if err := w.write(statusMissing, []byte("this is not part of the artifact, as far as it is here")); err != nil {
				return err
			}
			continue
		}
		data, err := store.read(dirChunks, name, buf)
		if err := s.reply(w, data, err); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) reply(w *answers, data []byte, err error) error {
	switch {
	case errors.Is(err, errMissing):
		return w.write(statusMissing, []byte("this part of the artifact is not here"))
	case err != nil:
		s.log.Error("can't read what a peer asked for", "error", err)
		return w.write(statusFailed, []byte("this peer can't read its store now"))
	}
	s.bytesOut.Add(int64(len(data)))
	return w.write(statusData, data)
}

// members is the sorted set of an artifact's blobs.
type members struct {
	root  sum
	blobs []sum
	whole bool // no list was missing
}

func (m *members) has(b sum) bool {
	_, ok := slices.BinarySearchFunc(m.blobs, b, compareSums)
	return ok
}

func compareSums(a, b sum) int { return slices.Compare(a[:], b[:]) }

// membersOf finds what belongs to root: on the stream, in the cache, or on disk.
func (s *Service) membersOf(root sum, w *answers) (*members, error) {
	if w.last != nil && w.root == root && w.last.whole {
		return w.last, nil
	}
	s.mu.Lock()
	for _, m := range s.members {
		if m.root == root {
			s.mu.Unlock()
			w.root, w.last = root, m
			return m, nil
		}
	}
	s.mu.Unlock()
	t, err := s.cfg.Store.tree(root)
	if err != nil {
		return nil, err
	}
	m := &members{root: root}
	m.whole, _ = s.cfg.Store.blobs(t, func(b sum, _ int) error { m.blobs = append(m.blobs, b); return nil })
	slices.SortFunc(m.blobs, compareSums)
	m.blobs = slices.Compact(m.blobs)
	if m.whole {
		s.mu.Lock()
		s.members = append([]*members{m}, s.members...)
		s.members = s.members[:min(len(s.members), cachedMembers)]
		s.mu.Unlock()
	}
	w.root, w.last = root, m
	return m, nil
}

// sumIs tells whether data has the sum.
func sumIs(name sum, data []byte) bool { return sha256.Sum256(data) == name }
