package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/node/api"
)

// What a peer does about recoveries that parted its cell (see consensus/notice.go): it
// shows them, keeps what proves them, and lets its operator say which side it is on.

// recoveriesDir keeps what is known of such recoveries, and old folders of the cell. It is for
// people: the node never removes any.
const recoveriesDir = "recoveries"

// rejoinFile says that this peer gives its old folder of the cell up, until the cell has taken it in.
const rejoinFile = "rejoin.json"

// head is what this peer shows of its history to those whom a recovery parted from it.
func (n *Node) head() []byte {
	t := n.signs.Load()
	if t == nil {
		return nil
	}
	t.latestMu.Lock()
	note := t.latest
	t.latestMu.Unlock()
	if note == nil {
		note = t.lastSigned()
	}
	if len(note) > 8<<10 {
		return nil
	}
	return note
}

// keepPartings keeps what proves a recovery that parted the cell, as soon as it is known.
func (n *Node) keepPartings(ctx context.Context) error {
	kept := map[string]bool{}
	for {
		for _, p := range n.cell.Partings() {
			for _, o := range append(slices.Clone(p.Others), consensus.Parted{}) { // the empty one: the notice alone
				dir := n.partingDir(p)
				if key := dir + string(o.Peer); !kept[key] && len(kept) < 4*maxEvidence {
					if err := n.keepParting(dir, p, o); err != nil {
						n.log.Error("the cell was parted by a recovery, and what proves it can't be kept", "error", err)
						continue
					}
					kept[key] = true
				}
			}
		}
		if !pause(ctx, 2*time.Second) {
			return nil
		}
	}
}

func (n *Node) partingDir(p consensus.Parting) string {
	return filepath.Join(n.cfg.Dir, recoveriesDir, fmt.Sprintf("%d-%s", p.Notice.Recovered.Index, pcm.DigestOf(p.Signed.Payload)[:16]))
}

// keepParting writes the signed notice, and the heads of both sides' histories. What is there stays.
func (n *Node) keepParting(dir string, p consensus.Parting, o consensus.Parted) error {
	if all, err := os.ReadDir(filepath.Dir(dir)); err == nil && len(all) >= maxEvidence && !slices.ContainsFunc(all, func(e fs.DirEntry) bool { return e.Name() == filepath.Base(dir) }) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return pcm.Errorf(pcm.Internal, "can't make %s: %w", dir, err)
	}
	notice, err := json.MarshalIndent(struct {
		Notice pcm.Notice `json:"notice"`
		Signed pcm.Signed `json:"signed"`
	}{p.Notice, p.Signed}, "", "  ")
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"notice.json": notice, "own.checkpoint": n.head(), string(o.Peer) + ".checkpoint": o.Head} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil || len(data) == 0 {
			continue
		}
		if err := writeFile(path, data); err != nil {
			return err
		}
	}
	return nil
}

// partings are what status says of them.
func (n *Node) partings() (list []string) {
	names := n.names()
	called := func(id pcm.PeerID) string { return orElse(names[id], pcm.Short(id)) }
	for _, p := range n.cell.Partings() {
		o := p.Notice
		when := time.UnixMilli(min(o.At, lastDate)).UTC().Format("2006-01-02 15:04 MST")
		why := pcm.Clean(o.Recovered.Reason, 80)
		kept := "what proves it is kept in " + n.partingDir(p)
		switch {
		case p.Own:
			for _, other := range p.Others {
				switch {
				case other.Stopped:
					list = append(list, fmt.Sprintf("ALARM: %s is up with its old folder: it was left behind when %s recovered this cell on %s, knows that, and takes no part any more; run 'pcm cell rejoin' there", called(other.Peer), called(o.By), when))
				case other.Leader != "":
					list = append(list, fmt.Sprintf("ALARM: %s goes on with the old cell, led there by %s, though %s recovered it on %s: there are two histories, and what is done there does not count here; run 'pcm cell rejoin' there; %s", called(other.Peer), called(other.Leader), called(o.By), when, kept))
				default:
					list = append(list, fmt.Sprintf("ALARM: %s is up with its old folder, and was left behind when %s recovered this cell on %s: run 'pcm cell rejoin' there", called(other.Peer), called(o.By), when))
				}
			}
		case p.Stopped:
			list = append(list, fmt.Sprintf("ALARM: %s recovered this cell without this peer on %s (%q): this peer takes no part in it any more; 'pcm cell rejoin' joins the recovered cell anew; if %s was wrong, 'pcm cell recover --refuse' on each peer that was left behind; %s", called(o.By), when, why, called(o.By), kept))
		case p.Refused:
			list = append(list, fmt.Sprintf("ALARM: %s recovered this cell without this peer on %s, which was refused here: there are two histories; %s", called(o.By), when, kept))
		case p.Believed:
			list = append(list, fmt.Sprintf("ALARM: %s says that it recovered this cell without this peer on %s (%q): there are two histories, or it lies; as long as this side has a leader, it goes on. Talk to its operator; on the side that is to end run 'pcm cell rejoin', on the other 'pcm cell recover --refuse'; %s", called(o.By), when, why, kept))
		default:
			list = append(list, fmt.Sprintf("%s says that it recovered this cell without this peer on %s (%q); it does not vote here, or contradicts what is known here, so nothing follows from it: talk to its operator; %s", called(o.By), when, why, kept))
		}
	}
	return list
}

// RefuseRecovery has this peer go on with the old cell, though it was recovered without it.
func (n *Node) RefuseRecovery(ctx context.Context) (api.Ack, error) {
	if err := n.cell.RefuseRecovery(); err != nil {
		return api.Ack{}, err
	}
	n.audit.operator(ctx, "refuse-recovery", api.AuditEntry{})
	return api.Ack{ID: string(n.id.Mesh.Cell), Text: "this peer goes on with the old cell; the others that were left behind must be told so as well"}, nil
}

// rejoining is the content of rejoinFile.
type rejoining struct {
	At        int64        `json:"at"`        // Unix ms; names where the old folder is kept
	Survivors []pcm.PeerID `json:"survivors"` // who are asked to take this peer in
	Moved     bool         `json:"moved"`     // the old folder is out of the way
}

// rejoinable is the recovery that a peer rejoins: the last of those for which it has
// stopped; if there is none, of those that a voter whom it knows stands for; only then of
// what anybody says. nil if there is none.
func rejoinable(all []consensus.Parting) (best *consensus.Parting) {
	trust := func(p consensus.Parting) int {
		switch {
		case p.Stopped:
			return 2
		case p.Believed && !p.Refused:
			return 1
		}
		return 0
	}
	for _, p := range all {
		if !p.Own && (best == nil || cmp.Or(cmp.Compare(trust(p), trust(*best)), cmp.Compare(p.Notice.At, best.Notice.At)) > 0) {
			best = &p
		}
	}
	return best
}

// RejoinCell has a peer that a recovery left behind put its folder of the cell aside,
// restart, and be taken in by those who went on.
func (n *Node) RejoinCell(ctx context.Context) (api.Ack, error) {
	last := rejoinable(n.cell.Partings())
	if last == nil {
		return api.Ack{}, pcm.Errorf(pcm.Refused, "nobody has told this peer that %s was recovered without it: it has nothing to rejoin", n.id.Mesh.CellName)
	}
	r := rejoining{At: time.Now().UnixMilli(), Survivors: append([]pcm.PeerID{last.Notice.By}, last.Notice.Keep...)}
	if err := n.writeRejoining(r); err != nil {
		return api.Ack{}, err
	}
	n.audit.operator(ctx, "rejoin-cell", api.AuditEntry{})
	n.log.Warn("the operator gives the old cell up: this peer rejoins the recovered one", "survivors", r.Survivors)
	n.rejoin.Store(true)
	n.stop(ErrRejoin)
	by := orElse(n.names()[last.Notice.By], pcm.Short(last.Notice.By))
	return api.Ack{ID: string(n.id.Mesh.Cell), Text: fmt.Sprintf("this peer rejoins the cell as %s recovered it, and restarts without what it had of the old one, which is kept in %s", by, n.oldCell(r))}, nil
}

func (n *Node) oldCell(r rejoining) string {
	return filepath.Join(n.cfg.Dir, recoveriesDir, "left-"+time.UnixMilli(r.At).UTC().Format("20060102-150405.000"))
}

func (n *Node) writeRejoining(r rejoining) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(n.cfg.Dir, rejoinFile), append(data, '\n'))
}

func (n *Node) readRejoining() (*rejoining, error) {
	path := filepath.Join(n.cfg.Dir, rejoinFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r rejoining
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "%s is damaged (%v): remove it, and order 'pcm cell rejoin' again", path, err)
	}
	return &r, nil
}

// leaveOldCell moves what this peer had of its cell out of the way, if its operator said
// so; also what a crash left undone. What it signed goes along: its key must not sign another history.
func (n *Node) leaveOldCell() error {
	r, err := n.readRejoining()
	if r == nil || err != nil || r.Moved {
		return err
	}
	dir := n.oldCell(*r)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return pcm.Errorf(pcm.Internal, "can't make %s: %w", dir, err)
	}
	for _, name := range []string{"cell", checkpointsDir, noteKeyFile} {
		if err := os.Rename(filepath.Join(n.cfg.Dir, name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return pcm.Errorf(pcm.Internal, "can't put %s aside: %w", filepath.Join(n.cfg.Dir, name), err)
		}
	}
	if err := errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)), syncDir(n.cfg.Dir)); err != nil {
		return pcm.Errorf(pcm.Internal, "can't put the old folder of the cell aside: %w", err)
	}
	n.id.Mesh.Founded, n.id.Mesh.Voters = false, r.Survivors
	if err := n.id.save(n.cfg.Dir); err != nil {
		return err
	}
	r.Moved = true
	return n.writeRejoining(*r)
}

// askInAgain asks those who went on to take this peer in, until they have.
func (n *Node) askInAgain(ctx context.Context) error {
	r, err := n.readRejoining()
	if r == nil || err != nil {
		return err
	}
	said := ""
	for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
		if st := n.cell.Status(); st.Role != consensus.RoleNone && st.Leader != "" {
			n.log.Info("this peer is in the recovered cell", "leader", pcm.Short(st.Leader))
			return removeIfThere(filepath.Join(n.cfg.Dir, rejoinFile))
		}
		var failed []string
		for _, id := range r.Survivors[:min(len(r.Survivors), 16)] {
			try, cancel := context.WithTimeout(ctx, cellJoinTime)
			_, err := n.mesh.Call(try, id, protoCellJoin, pcm.MustMarshal(cellJoinRequest{n.id.Mesh.Cell, n.mesh.Signed()}))
			cancel()
			if err == nil {
				failed = nil
				break
			}
			failed = append(failed, err.Error())
		}
		if why := strings.Join(failed, "; "); why != said {
			if said = why; why != "" {
				n.log.Warn("the recovered cell has not taken this peer in yet", "reason", why, "hint", "'pcm cell add' there takes it in as well")
			}
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}
