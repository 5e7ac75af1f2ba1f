package artifact

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jointcloud/pcm"
	"golang.org/x/sync/errgroup"
)

// flight is the transfer of some artifacts, shared by all who ask for any of them.
type flight struct {
	done   chan struct{}
	err    error // set before done is closed
	users  int   // guarded by Service.mu; none: the transfer is cancelled
	cancel context.CancelFunc
}

// Fetch brings an artifact here from the first of the peers that has it whole.
// Only what is missing travels; calls for the same artifact at the same time
// share one transfer; what arrived stays when a transfer is cut, and the next
// goes on from there.
//
// Errors: NotFound (no peer has it), Forbidden (those who have it refuse), Invalid
// (the artifact itself is malformed), TooLarge (over Limits.MaxBytes), Refused (no
// room here), Unavailable (anything else; the message says what happened with each peer).
func (s *Service) Fetch(ctx context.Context, d pcm.Digest, from ...pcm.PeerID) error {
	return s.FetchWithin(ctx, s.cfg.Limits.MaxBytes, []pcm.Digest{d}, from...)
}

// FetchAll is Fetch for many artifacts at once: small ones all come in one round trip.
func (s *Service) FetchAll(ctx context.Context, ds []pcm.Digest, from ...pcm.PeerID) error {
	return s.FetchWithin(ctx, s.cfg.Limits.MaxBytes, ds, from...)
}

// FetchWithin is FetchAll with a bound on the content of all that isn't here yet, in bytes.
func (s *Service) FetchWithin(ctx context.Context, maxBytes pcm.Bytes, ds []pcm.Digest, from ...pcm.PeerID) error {
	for {
		names, err := s.absent(ds)
		if err != nil || len(names) == 0 {
			return err
		}
		if len(from) == 0 {
			return pcm.Errorf(pcm.NotFound, "artifact %s is not here, and no peer is known to have it", pcm.Short(names[0].digest()))
		}
		own, others := s.join(ctx, maxBytes, names, from)
		joined, err := s.wait(ctx, own, others)
		if err != nil {
			return err
		}
		if own != nil || joined == nil {
			if err := s.within(others, maxBytes); err != nil || joined == nil {
				return err
			}
		}
		// Another's transfer failed, perhaps for reasons of its own: by ours then.
	}
}

// absent picks the artifacts that aren't here whole, each once.
func (s *Service) absent(ds []pcm.Digest) ([]sum, error) {
	var names []sum
	seen := map[sum]bool{}
	for _, d := range ds {
		name, err := sumOf(d)
		if err != nil {
			return nil, err
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		if s.cfg.Store.Has(d) {
			s.cfg.Store.touch(name)
		} else {
			names = append(names, name)
		}
	}
	return names, nil
}

// join takes part in the flights under way and starts one for the rest.
func (s *Service) join(ctx context.Context, maxBytes pcm.Bytes, names []sum, from []pcm.PeerID) (own *flight, others map[sum]*flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	others = map[sum]*flight{}
	var mine []sum
	for _, n := range names {
		if f := s.flights[n]; f != nil {
			f.users++
			others[n] = f
		} else {
			mine = append(mine, n)
		}
	}
	if len(mine) == 0 {
		return nil, others
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	own = &flight{done: make(chan struct{}), users: 1, cancel: cancel}
	for _, n := range mine {
		s.flights[n] = own
	}
	go func() {
		defer cancel()
		err := s.transfer(run, maxBytes, mine, from)
		s.mu.Lock()
		for _, n := range mine {
			delete(s.flights, n)
		}
		s.mu.Unlock()
		own.err = err
		close(own.done)
	}()
	return own, others
}

// wait waits for all flights, and leaves them. The first error is that of a
// flight of others, the second our own.
func (s *Service) wait(ctx context.Context, own *flight, others map[sum]*flight) (joined, err error) {
	one := func(f *flight) error {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if f.users--; f.users == 0 {
				f.cancel()
			}
		}()
		select {
		case <-f.done:
			return f.err
		case <-ctx.Done():
			return nil
		}
	}
	if own != nil {
		err = one(own)
	}
	for _, f := range others {
		if e := one(f); e != nil {
			joined = e
		}
	}
	if ctx.Err() != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "fetching artifacts was given up; what arrived is kept: %w", ctx.Err())
	}
	return joined, err
}

// within checks what flights of others brought, under their bound, against ours.
func (s *Service) within(others map[sum]*flight, maxBytes pcm.Bytes) error {
	total := pcm.Bytes(0)
	for n := range others {
		if t, err := s.cfg.Store.tree(n); err == nil {
			total += t.Size()
		}
	}
	if total > maxBytes {
		return tooLarge(total, maxBytes)
	}
	return nil
}

func tooLarge(n, bound pcm.Bytes) error {
	return pcm.Errorf(pcm.TooLarge, "content of %s (%d bytes) is over the bound of %s (%d bytes) for this transfer", n, n, bound, bound)
}

// final is an error for which another source is no help.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// transfer brings the artifacts from one source after the other.
func (s *Service) transfer(ctx context.Context, maxBytes pcm.Bytes, names []sum, from []pcm.PeerID) (err error) {
	store := s.cfg.Store
	ses := store.begin(names...)
	defer func() { ses.end(err == nil || !noSpace(err)) }() // what arrived stays, unless the disk is full of it
	var reasons []string
	codes := map[pcm.Code]int{}
	tried := map[pcm.PeerID]bool{}
	left := names
	for _, p := range from {
		if tried[p] {
			continue
		}
		tried[p] = true
		l := &link{s: s, ctx: ctx, peer: p}
		err := l.fetch(ses, maxBytes, left)
		l.close(err)
		var f final
		if errors.As(err, &f) {
			return f.error
		}
		left = slices.DeleteFunc(slices.Clone(left), func(n sum) bool { return store.Has(n.digest()) })
		if len(left) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return pcm.Errorf(pcm.Unavailable, "fetching artifacts was given up; what arrived is kept: %w", ctx.Err())
		}
		if err == nil {
			err = pcm.Errorf(pcm.Unavailable, "what it sent was damaged here")
		}
		var l2 *lie
		if errors.As(err, &l2) {
			s.log.Warn("a peer sent false content", "peer", p, "why", l2.why)
			err = pcm.Errorf(pcm.Unavailable, "it is faulty or lies: %s", l2.why)
		}
		codes[pcm.ErrorCode(err)]++
		reasons = append(reasons, fmt.Sprintf("from %s: %v", pcm.Short(p), err))
	}
	code := pcm.Unavailable
	for _, c := range []pcm.Code{pcm.NotFound, pcm.Forbidden} {
		if codes[c] == len(reasons) {
			code = c
		}
	}
	what := "artifact " + pcm.Short(left[0].digest())
	if len(left) > 1 {
		what = fmt.Sprintf("%d artifacts (%s and others)", len(left), pcm.Short(left[0].digest()))
	}
	return pcm.Errorf(code, "can't fetch %s: %s", what, strings.Join(reasons, "; "))
}

// link fetches from one peer.
type link struct {
	s    *Service
	ctx  context.Context // of the transfer, which the link lives within
	peer pcm.PeerID

	mu   sync.Mutex
	idle []*conn
}

// get opens a stream, or takes an idle one. Without wait it is nil if the bound
// of streams is reached.
func (l *link) get(ctx context.Context, wait bool) (*conn, error) {
	l.mu.Lock()
	if n := len(l.idle); n > 0 {
		c := l.idle[n-1]
		l.idle = l.idle[:n-1]
		l.mu.Unlock()
		return c, nil
	}
	l.mu.Unlock()
	if !wait {
		if !l.s.bulk.TryAcquire(1) {
			return nil, nil
		}
	} else if err := l.s.bulk.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	st, err := l.s.cfg.Network.Stream(ctx, l.peer, Protocol)
	if err != nil {
		l.s.bulk.Release(1)
		return nil, err
	}
	return newConn(l.ctx, st, func() { l.s.bulk.Release(1) }), nil
}

func (l *link) put(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = append(l.idle, c)
}

func (l *link) close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.idle {
		c.close(err)
	}
	l.idle = nil
}

// piece is a blob to fetch.
type piece struct {
	root sum // the artifact in whose name it is asked for
	name sum
	size int // exact; of a manifest, the most
	tree bool
}

// fetch brings what is missing of the artifacts: manifests, then lists, then chunks.
// That the peer lacks some of it is an error once the rest is here.
func (l *link) fetch(ses *session, maxBytes pcm.Bytes, names []sum) error {
	store := l.s.cfg.Store
	trees := make(map[sum]Tree, len(names))
	var want []piece
	total := pcm.Bytes(0)
	for _, n := range names {
		t, err := store.tree(n)
		if errors.Is(err, errMissing) {
			want = append(want, piece{root: n, name: n, size: MaxManifest, tree: true})
			continue
		}
		if err != nil {
			return final{err}
		}
		trees[n] = t
		total += t.Size()
	}
	var mu sync.Mutex
	lacking, err := l.bring(want, func(p piece, data []byte) error {
		t, err := DecodeTree(data)
		if err != nil {
			return final{pcm.Errorf(pcm.Invalid, "artifact %s is malformed: %w", pcm.Short(p.name.digest()), err)}
		}
		mu.Lock()
		defer mu.Unlock()
		if total += t.Size(); total > maxBytes {
			return final{tooLarge(total, maxBytes)}
		}
		trees[p.name] = t
		if err := ses.putTree(p.name, t, data, false); err != nil {
			return final{err}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if total > maxBytes {
		return final{tooLarge(total, maxBytes)}
	}
	store1 := func(p piece, data []byte) error {
		if err := ses.put(p.name, data); err != nil {
			return final{err}
		}
		return nil
	}
	// Lists first; when they are here, the second round finds the chunks that they name.
	for range 2 {
		want, seen := want[:0], map[sum]struct{}{}
		listed := true
		for _, n := range names {
			t, ok := trees[n]
			if !ok {
				continue
			}
			whole, _ := store.blobs(t, func(b sum, size int) error {
				if _, ok := seen[b]; !ok {
					seen[b] = struct{}{}
					ses.hold(b)
					if !store.present(b, size) {
						want = append(want, piece{root: n, name: b, size: size})
					}
				}
				return nil
			})
			listed = listed && whole
		}
		more, err := l.bring(want, store1)
		if err != nil {
			return err
		}
		if more != nil {
			lacking = more
		}
		if listed {
			break
		}
	}
	return lacking
}

// queue hands batches of pieces to the streams.
type queue struct {
	mu      sync.Mutex
	batches [][]piece
	workers int
}

func (q *queue) next() []piece {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.batches) == 0 {
		return nil
	}
	b := q.batches[0]
	q.batches = q.batches[1:]
	return b
}

// quit takes a worker out that leaves batches undone, and tells whether others go on.
func (q *queue) quit(undone ...[]piece) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range undone {
		if len(b) > 0 {
			q.batches = append(q.batches, b)
		}
	}
	q.workers--
	return q.workers > 0
}

func batchesOf(pieces []piece) (out [][]piece) {
	from, bytes := 0, 0
	for i, p := range pieces {
		size, bound := p.size, wantBlobs
		if p.tree {
			size, bound = 4<<10, maxWanted // most are small
		}
		if i > from && (bytes+size > wantBytes || i-from >= bound) {
			out = append(out, pieces[from:i])
			from, bytes = i, 0
		}
		bytes += size
	}
	if from < len(pieces) {
		out = append(out, pieces[from:])
	}
	return out
}

// bring fetches pieces over as many streams as are useful and hands each to
// accept, from several goroutines, once its sum is right. The data is the
// caller's during the call only. Lacking is the peer's word on the last piece
// that it didn't give.
func (l *link) bring(pieces []piece, accept func(piece, []byte) error) (lacking, err error) {
	if len(pieces) == 0 {
		return nil, nil
	}
	q := &queue{batches: batchesOf(pieces)}
	n := min(len(q.batches), l.s.cfg.Limits.Streams)
	q.workers = n
	var mu sync.Mutex
	note := func(err error) { mu.Lock(); lacking = err; mu.Unlock() }
	g, ctx := errgroup.WithContext(l.ctx)
	for i := range n {
		g.Go(func() error {
			c, err := l.get(ctx, i == 0)
			if err != nil || c == nil {
				if i > 0 && q.quit() {
					return nil // the others do it
				}
				return unreachable(err)
			}
			err = l.work(ctx, c, q, accept, note)
			if err == nil {
				l.put(c)
				return nil
			}
			c.close(err)
			if pcm.ErrorCode(err) == pcm.Busy && i > 0 {
				return nil
			}
			return err
		})
	}
	return lacking, g.Wait()
}

func unreachable(err error) error {
	if err == nil || pcm.ErrorCode(err) != pcm.Internal {
		return err
	}
	return pcm.Errorf(pcm.Unavailable, "can't be reached: %w", err)
}

// work brings batches over one stream, with the next one asked for ahead.
func (l *link) work(ctx context.Context, c *conn, q *queue, accept func(piece, []byte) error, note func(error)) error {
	stop := context.AfterFunc(ctx, func() { c.st.Reset() })
	defer stop()
	ask := func() ([]piece, error) {
		b := q.next()
		if b == nil {
			return nil, nil
		}
		l.s.requests.Add(1)
		return b, c.send(requestFor(b))
	}
	now, err := ask()
	for now != nil && err == nil {
		var ahead []piece
		if ahead, err = ask(); err != nil {
			break
		}
		for i, p := range now {
			err := l.take(c, p, accept)
			switch code := pcm.ErrorCode(err); {
			case err == nil:
			case code == pcm.Busy:
				q.quit(now[i:], ahead)
				return err
			case isAnswer(err):
				note(err)
			default:
				return err
			}
		}
		now = ahead
	}
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "the connection broke: %w", err)
	}
	return nil
}

// isAnswer tells whether err is the server's word on one blob.
func isAnswer(err error) bool {
	var f final
	var l *lie
	var pe *pcm.Error
	return !errors.As(err, &f) && !errors.As(err, &l) && errors.As(err, &pe) && pe.Unwrap() == nil
}

// take receives one piece and checks it.
func (l *link) take(c *conn, p piece, accept func(piece, []byte) error) error {
	bp := chunkBufs.Get().(*[]byte)
	defer chunkBufs.Put(bp)
	buf := *bp
	if p.tree {
		buf = nil // a manifest may be larger than a chunk: read in its own size
	} else {
		buf = buf[:p.size]
	}
	data, err := c.receive(buf, p.size)
	if err != nil {
		return err
	}
	if !p.tree && len(data) != p.size || !sumIs(p.name, data) {
		return &lie{fmt.Sprintf("what it sent as %s is something else", pcm.Short(p.name.digest()))}
	}
	l.s.bytesIn.Add(int64(len(data)))
	l.s.blobsIn.Add(1)
	return accept(p, data)
}

// requestFor asks for the pieces, in their order.
func requestFor(b []piece) request {
	var r request
	for _, p := range b {
		if p.tree {
			r.Items = append(r.Items, item{Root: slices.Clone(p.root[:]), Tree: true})
			continue
		}
		if n := len(r.Items); n == 0 || r.Items[n-1].Tree || string(r.Items[n-1].Root) != string(p.root[:]) {
			r.Items = append(r.Items, item{Root: slices.Clone(p.root[:])})
		}
		it := &r.Items[len(r.Items)-1]
		it.Blobs = append(it.Blobs, p.name[:]...)
	}
	return r
}
