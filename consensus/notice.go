package consensus

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// A cell that was recovered goes on without those that were lost. Should they come
// up again with their old folders, they would elect a leader among themselves, and
// there would be two histories of one cell. So each peer that was left behind is told,
// by a notice that whoever went on has signed, and the recovered cell learns who is up.
//
// The notice can't carry a majority's word: the majority is what was lost. To believe it
// blindly would let any one voter stop all others. Therefore:
//   - Who has no leader, since its start or for long, asks all others before it stands for
//     election. As long as it knows a notice that leaves it behind, it doesn't stand.
//     It votes all the same: for a voter that had a leader lately, and so has a right to one.
//   - Is there no leader after that either, it takes no part in the cell any more, neither
//     by votes nor by entries, until a person decides. That outlives restarts.
//   - Where its side has a leader, a majority of the old voters is alive, and one voter's word is
//     not above theirs: it goes on, and both sides raise the alarm.
//   - Only what a voter of this peer's own configuration says stops it, by its signature or
//     over a connection that proves who it is; what others say is shown.
//   - Not believed is who says of an entry that this peer has applied that it was another.
//
// A peer learns from its own leader that it is on the recovered side.
type notices struct {
	c    *Cell
	path string
	beat time.Duration // heartbeat timeout of a cell at work
	poke chan struct{} // has room for one

	mu    sync.Mutex
	kept  keptNotices
	own   []pcm.Notice // kept.Own, opened
	heard []pcm.Notice // kept.Heard, opened
	words map[pcm.PeerID]*lastWord
	led   time.Time // when this peer's side had a leader last; zero: not since the start
	doubt time.Time // since when this peer has known a notice that it believes; zero: it knows none
	asked bool      // the others were asked since there is no leader, and none believed says anything
}

// keptNotices is what a peer notes durably of recoveries of its cell.
type keptNotices struct {
	Own   []pcm.Signed  `cbor:"1,keyasint"` // that its history went through, oldest first
	Heard []heardNotice `cbor:"2,keyasint"` // that left it behind
}

type heardNotice struct {
	Notice  pcm.Signed   `cbor:"1,keyasint"`
	From    []pcm.PeerID `cbor:"2,keyasint"` // who has told it, the first few
	At      int64        `cbor:"3,keyasint"` // wall clock, ms: first heard
	Stopped int64        `cbor:"4,keyasint"` // since when this peer takes no part; 0: it does
	Refused int64        `cbor:"5,keyasint"` // when its operator decided that the old cell goes on; 0: not
}

// Bounds and timing of notices.
const (
	fileNotices = "notices.cbor"
	maxNotices  = 8 // of each kind
	maxTellers  = 8 // of each notice
	maxWords    = 2 * MaxMembers
	maxHead     = 8192 // bytes

	// In heartbeat timeouts: 1 s in a LAN, 5 s in a WAN.
	noticeEvery   = 4  // between looks at who is up
	noticeAsk     = 2  // for all others to answer, before this peer stands without their answer
	noticeDoubt   = 4  // without a leader, in doubt, until this peer takes no part
	noticeAlone   = 15 // without a leader until this peer asks the others before it stands
	noticeRecent  = 15 // a peer that has answered within it is up
	noticeRetries = 5  // of one question, in a heartbeat timeout
)

func newNotices(c *Cell) *notices {
	return &notices{c: c, poke: make(chan struct{}, 1), words: map[pcm.PeerID]*lastWord{}}
}

// open reads what was noted, and makes the notice of a recovery that this folder just went through.
func (n *notices) open(beat time.Duration) error {
	n.path, n.beat = filepath.Join(n.c.cfg.Dir, fileNotices), beat
	data, err := os.ReadFile(n.path)
	if err == nil {
		err = pcm.Unmarshal(data, &n.kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pcm.Errorf(pcm.Internal, "%s is damaged (%v): restore it from a backup; without it this peer could go on in a cell that was recovered without it", n.path, err)
	}
	for _, s := range n.kept.Own {
		if o, err := n.read(s); err == nil {
			n.own = append(n.own, o)
		}
	}
	for _, h := range n.kept.Heard {
		if o, err := n.read(h.Notice); err == nil {
			n.heard = append(n.heard, o)
		}
	}
	if len(n.own) != len(n.kept.Own) || len(n.heard) != len(n.kept.Heard) {
		return pcm.Errorf(pcm.Internal, "%s is damaged: it has notices that are none; restore it from a backup", n.path)
	}
	r := n.c.recovered
	if r == nil || n.c.cfg.Seal == nil || slices.ContainsFunc(n.own, func(o pcm.Notice) bool { return o.By == n.c.cfg.Self && o.At == r.At }) {
		return nil
	}
	return n.take(n.c.cfg.Seal(pcm.DomainNotice, pcm.Notice{
		Mesh: n.c.cfg.Mesh, Cell: n.c.cfg.Cell, By: n.c.cfg.Self, At: r.At, Keep: r.Keep,
		Recovered: pcm.Recovered{Index: r.Index, Term: r.Term, Lost: r.Lost, Way: r.Way, Reason: r.Reason},
	}))
}

func (n *notices) read(s pcm.Signed) (pcm.Notice, error) {
	return pcm.OpenNotice(s, n.c.cfg.Mesh, n.c.cfg.Cell)
}

func (n *notices) save() error { return writeFile(n.path, pcm.MustMarshal(n.kept)) }

// take notes a recovery that this peer's history went through. It needs the lock, once the cell is open.
func (n *notices) take(s pcm.Signed) error {
	o, err := n.read(s)
	if err != nil {
		return err
	}
	n.own, n.kept.Own = append(n.own, o), append(n.kept.Own, s)
	if over := len(n.own) - maxNotices; over > 0 {
		n.own, n.kept.Own = n.own[over:], n.kept.Own[over:]
	}
	n.drop(func(i int) bool { return n.kept.Heard[i].Notice.Equal(s) })
	return n.save()
}

// drop forgets notices that were heard. It needs the lock.
func (n *notices) drop(is func(i int) bool) {
	for i := len(n.heard) - 1; i >= 0; i-- {
		if is(i) {
			n.heard, n.kept.Heard = slices.Delete(n.heard, i, i+1), slices.Delete(n.kept.Heard, i, i+1)
		}
	}
}

// run asks others when there is no leader, looks now and then who is up when
// there is one, and decides what follows.
func (n *notices) run() {
	for {
		leader, changed := n.c.watch.current()
		wait := noticeEvery * n.beat
		if leader != "" {
			n.mu.Lock()
			n.led, n.asked = time.Now(), false
			n.mu.Unlock()
			n.look(leader)
		} else {
			if n.alone() {
				n.inquire(changed)
			}
			if wait = n.beat; n.stopped() != nil {
				wait = noticeEvery * n.beat
			}
		}
		n.decide()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-n.poke:
		case <-n.c.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// alone tells whether there has been no leader for long, or none since the start.
func (n *notices) alone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.aloneLocked()
}

func (n *notices) aloneLocked() bool { return time.Since(n.led) > noticeAlone*n.beat }

// mute tells why this peer doesn't stand for election now; nil if it may.
func (n *notices) mute() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.stoppedLocked() != nil:
		return n.stoppedLocked()
	case n.aloneLocked() && (!n.asked || !n.doubt.IsZero()):
		return pcm.Errorf(pcm.Unavailable, "this peer asks the others whether the cell was recovered without it, before it stands for election")
	}
	return nil
}

// stopped is why this peer takes no part in the cell; nil if it does.
func (n *notices) stopped() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stoppedLocked()
}

func (n *notices) stoppedLocked() error {
	for i, h := range n.kept.Heard {
		if h.Stopped > 0 && h.Refused == 0 {
			return leftBehind(n.c.cfg.Cell, n.heard[i])
		}
	}
	return nil
}

// LeftBehind is why this peer takes no part in the cell any more, when it was recovered without
// this peer; else nil.
func (c *Cell) LeftBehind() error { return c.notices.stopped() }

func leftBehind(cell pcm.CellID, o pcm.Notice) error {
	return pcm.Errorf(pcm.Refused, "%s was recovered without this peer on %s by %s (%q), and this peer takes no part in it any more: 'pcm cell rejoin' puts this folder aside and joins the recovered cell; if that peer was wrong, 'pcm cell recover --refuse' goes on with what is here",
		pcm.Short(cell), time.UnixMilli(o.At).UTC().Format("2006-01-02 15:04 MST"), pcm.Short(o.By), pcm.Clean(o.Recovered.Reason, 80))
}

// believed tells whether a notice that was heard stops this peer where there is no leader: a
// voter whom it knows stands for it, and it denies nothing that this peer knows. It needs the lock.
func (n *notices) believed(i int) bool {
	return n.kept.Heard[i].Refused == 0 && n.credible(n.heard[i], n.kept.Heard[i].From)
}

func (n *notices) credible(o pcm.Notice, from []pcm.PeerID) bool {
	return !n.c.forgot() && (slices.ContainsFunc(from, n.c.isVoter) || n.c.isVoter(o.By)) && !n.c.denies(o.Recovered)
}

func (c *Cell) isVoter(id pcm.PeerID) bool { return slices.Contains(c.voters(), id) }

// tell notes that a peer has told it, which is news or not. One of the few that are noted is a
// voter, if any has: it is by that that a notice is believed.
func (h *heardNotice) tell(from pcm.PeerID, isVoter func(pcm.PeerID) bool) bool {
	switch {
	case slices.Contains(h.From, from):
		return false
	case len(h.From) < maxTellers:
		h.From = append(h.From, from)
	case isVoter(from) && !slices.ContainsFunc(h.From, isVoter):
		h.From[maxTellers-1] = from
	default:
		return false
	}
	return true
}

// denies tells whether a recovery is of another history than the one that this peer
// has applied. Of entries that the log has no more, nothing is known here.
func (c *Cell) denies(r pcm.Recovered) bool {
	if r.Index > max(c.Applied(), c.archive.current().Applied) {
		return false
	}
	term, err := c.termOf(r.Index)
	return err == nil && term != r.Term
}

// decide has this peer take no part any more if there is nobody to follow, and a
// notice that it believes has left it behind.
func (n *notices) decide() {
	leader, _ := n.c.watch.current()
	n.mu.Lock()
	defer n.mu.Unlock()
	i := -1
	for k := range n.heard {
		if n.believed(k) {
			i = k
		}
	}
	switch {
	case i < 0:
		n.doubt = time.Time{}
		return
	case n.doubt.IsZero():
		n.doubt = time.Now()
		n.c.log.Error("ALARM: the cell was recovered without this peer, says one of its voters", "cell", n.c.cfg.Cell, "by", n.heard[i].By, "at", time.UnixMilli(n.heard[i].At).UTC(), "leader_here", leader)
	}
	h := &n.kept.Heard[i]
	if leader != "" || !n.aloneLocked() || h.Stopped > 0 || time.Since(n.doubt) < noticeDoubt*n.beat {
		return
	}
	h.Stopped = n.c.cfg.Now().UnixMilli()
	if err := n.save(); err != nil {
		h.Stopped = 0
		n.c.log.Error("can't note that this peer was left behind: it will try again", "error", err)
		return
	}
	n.c.log.Error("this peer takes no part in the cell any more", "cell", n.c.cfg.Cell, "reason", n.stoppedLocked())
	n.c.layer.cut(func(pcm.PeerID) bool { return true })
	n.c.trans.CloseStreams()
}

// Parting is a recovery of the cell that left this peer behind, or that left others
// behind who are up with their old folders.
type Parting struct {
	Notice  pcm.Notice
	Signed  pcm.Signed
	Own     bool // this peer's history went through it: Others were left behind
	Stopped bool // this peer takes no part in the cell because of it
	Refused bool // its operator goes on all the same
	// Believed says that a voter whom this peer knows stands for it, and that it denies
	// nothing which this peer has applied.
	Believed bool
	Others   []Parted
}

// Parted is a peer on the other side of a recovery, as it says of itself.
type Parted struct {
	Peer    pcm.PeerID
	Leader  pcm.PeerID // "": none
	Term    uint64
	Last    uint64 // entry in its log
	Stopped bool   // it takes no part any more
	Head    []byte // of its history, signed; nil: it has none
}

// Partings are the recoveries that left this peer behind, and those that left others behind who are up.
func (c *Cell) Partings() (list []Parting) {
	n := c.notices
	n.mu.Lock()
	defer n.mu.Unlock()
	up := func(ids []pcm.PeerID, other func(w *lastWord) bool) (others []Parted) {
		for _, id := range ids {
			if w := n.words[id]; w != nil && time.Since(w.at) < noticeRecent*n.beat && !w.Forgot && w.Last > 0 && other(w) {
				others = append(others, Parted{id, w.Leader, w.Term, w.Last, w.Stopped, w.Head})
			}
		}
		slices.SortFunc(others, func(a, b Parted) int { return strings.Compare(string(a.Peer), string(b.Peer)) })
		return others
	}
	for i, o := range n.own {
		p := Parting{Notice: o, Signed: n.kept.Own[i], Own: true}
		p.Others = up(o.Recovered.Lost, func(w *lastWord) bool { return !slices.ContainsFunc(w.Notices, p.Signed.Equal) })
		if len(p.Others) > 0 {
			list = append(list, p)
		}
	}
	for i, o := range n.heard {
		h := n.kept.Heard[i]
		p := Parting{Notice: o, Signed: h.Notice, Stopped: h.Stopped > 0 && h.Refused == 0, Refused: h.Refused > 0, Believed: h.Refused > 0 || n.believed(i)}
		p.Others = up(append(slices.Clone(o.Keep), o.By), func(w *lastWord) bool { return slices.ContainsFunc(w.Notices, p.Signed.Equal) })
		list = append(list, p)
	}
	return list
}

// RefuseRecovery has this peer go on with what it has, though the cell was recovered without
// it, on a person's word. Each peer that was left behind has to be told so.
func (c *Cell) RefuseRecovery() error {
	n := c.notices
	n.mu.Lock()
	defer n.mu.Unlock()
	before, refused := slices.Clone(n.kept.Heard), false
	for i := range n.kept.Heard {
		if h := &n.kept.Heard[i]; h.Refused == 0 {
			h.Refused, refused = c.cfg.Now().UnixMilli(), true
		}
	}
	if !refused {
		return pcm.Errorf(pcm.Refused, "nobody has told this peer that %s was recovered without it", pcm.Short(c.cfg.Cell))
	}
	if err := n.save(); err != nil {
		n.kept.Heard = before
		return err
	}
	c.log.Warn("the operator goes on with the old cell, though it was recovered without this peer", "cell", c.cfg.Cell)
	select {
	case n.poke <- struct{}{}:
	default:
	}
	return nil
}
