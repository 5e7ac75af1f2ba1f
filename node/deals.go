package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// protoAgree hands an offer, or its acceptance, to a peer of the other account.
const protoAgree protocol.ID = "/pcm/agree/1.0.0"

// Bounds of agreements.
const (
	maxAgreement   = 64 << 10
	maxAgreements  = 512 // that are kept, done or not
	maxAskedBy     = 32  // offers of one other account that are kept unanswered
	agreementsFile = "agreements.json"
	dealsRetry     = 30 * time.Second // how often what is agreed is brought to cells that don't have it
	dealsWait      = 10 * time.Second // for all cells, and for the other account
	keepDone       = 30 * 24 * time.Hour
)

// deals are the offers between this account and others. What binds is in the
// ledgers; this is who has said what so far.
type deals struct {
	n    *Node
	path string

	mu   sync.Mutex
	list map[string]*deal
}

// deal is one offer, as it is kept in a file.
type deal struct {
	Agreed pcm.Agreed          `json:"agreed"`
	Domain pcm.Domain          `json:"domain"`
	At     time.Time           `json:"at"`
	In     map[pcm.CellID]bool `json:"in,omitempty"`   // cells that have it
	Over   string              `json:"over,omitempty"` // why nothing more can come of it
	Text   string              `json:"text,omitempty"` // for people

	Refused map[pcm.CellID]string `json:"refused,omitempty"` // cells that will never have it, and why

	net pcm.Netting
	res pcm.Resolution
}

func openDeals(n *Node) (*deals, error) {
	d := &deals{n: n, path: filepath.Join(n.cfg.Dir, agreementsFile), list: map[string]*deal{}}
	raw, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	var kept []*deal
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't read the agreements in %s: %w; mend the file, or move it away: what is in the ledger stays", d.path, err)
	}
	for _, k := range kept {
		if err := k.read(); err != nil {
			n.log.Warn("an agreement in the data folder is damaged and left out", "file", d.path, "error", err)
			continue
		}
		d.list[k.id()] = k
	}
	return d, nil
}

// read checks what the first account has signed, and decodes it.
func (k *deal) read() (err error) {
	if k.Domain == pcm.DomainNetting {
		k.net, err = pcm.ReadNetting(k.Agreed)
	} else {
		k.res, err = pcm.ReadResolution(k.Agreed)
	}
	if err == nil && k.both() {
		if k.Domain == pcm.DomainNetting {
			_, err = pcm.OpenNetting(k.Agreed)
		} else {
			_, err = pcm.ResolveAs(k.res, k.Agreed).Open()
		}
	}
	return err
}

func (k *deal) both() bool { return len(k.Agreed.Second) > 0 }

func (k *deal) id() string {
	if k.Domain == pcm.DomainNetting {
		return string(k.net.ID)
	}
	sum := sha256.Sum256(k.Agreed.Payload)
	return "res-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

func (k *deal) parties() (from, to pcm.AccountID) {
	if k.Domain == pcm.DomainNetting {
		return k.net.A, k.net.B
	}
	return k.res.Parties()
}

func (k *deal) mesh() pcm.MeshID {
	if k.Domain == pcm.DomainNetting {
		return k.net.Mesh
	}
	return k.res.Mesh
}

// cells are those that it is for.
func (k *deal) cells() (list []pcm.CellID) {
	if k.Domain != pcm.DomainNetting {
		return []pcm.CellID{k.res.Cell}
	}
	for _, l := range k.net.Lines {
		list = append(list, l.Cell)
	}
	return list
}

func (k *deal) op() pcm.Op {
	if k.Domain == pcm.DomainNetting {
		return pcm.Op{Net: &pcm.Net{Netting: k.Agreed}}
	}
	return pcm.Op{Resolve: pcm.ResolveAs(k.res, k.Agreed)}
}

func (k *deal) done() bool {
	for _, c := range k.cells() {
		if !k.In[c] {
			return false
		}
	}
	return true
}

// until is until when it can be applied; the zero time: no end is said.
func (k *deal) until() time.Time {
	at := k.res.NotAfter
	if k.Domain == pcm.DomainNetting {
		at = k.net.NotAfter
	}
	return logDate(at)
}

// state is where it stands for an account.
func (k *deal) state(account pcm.AccountID, now time.Time) string {
	from, _ := k.parties()
	switch {
	case k.done():
		return api.AgreementDone
	case k.Over != "" || !k.until().IsZero() && now.After(k.until()):
		return api.AgreementOver
	case k.both():
		return api.AgreementAgreed
	case from == account:
		return api.AgreementOffered
	}
	return api.AgreementAsked
}

// save writes the list. It needs the lock.
func (d *deals) save() error {
	now := time.Now()
	var kept []*deal
	for _, k := range d.list {
		kept = append(kept, k)
	}
	slices.SortFunc(kept, func(a, b *deal) int { return cmp.Or(b.At.Compare(a.At), strings.Compare(a.id(), b.id())) })
	settled := func(k *deal) bool {
		s := k.state(d.n.account, now)
		return s == api.AgreementDone || s == api.AgreementOver
	}
	kept = slices.DeleteFunc(kept, func(k *deal) bool { return settled(k) && now.Sub(k.At) > keepDone })
	for i := len(kept) - 1; i >= 0 && len(kept) > maxAgreements; i-- {
		if settled(kept[i]) {
			kept = slices.Delete(kept, i, i+1)
		}
	}
	d.list = map[string]*deal{}
	for _, k := range kept {
		d.list[k.id()] = k
	}
	raw, err := json.MarshalIndent(kept, "", " ")
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't write the agreements: %w", err)
	}
	return writeFile(d.path, raw)
}

// keep takes an offer or its acceptance in. It tells whether that is news.
func (d *deals) keep(k *deal) (bool, error) {
	if err := k.read(); err != nil {
		return false, err
	}
	from, to := k.parties()
	if k.mesh() != d.n.id.Mesh.Mesh || from != d.n.account && to != d.n.account {
		return false, pcm.Errorf(pcm.Refused, "the offer is between account %s and account %s of %s: it is not for this one, %s", pcm.Short(from), pcm.Short(to), pcm.Short(k.mesh()), pcm.Short(d.n.account))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id := k.id()
	if old := d.list[id]; old != nil {
		if string(old.Agreed.Payload) != string(k.Agreed.Payload) {
			return false, pcm.Errorf(pcm.Conflict, "%s is another offer here: let it be made anew", id)
		}
		if old.both() || !k.both() {
			return false, nil
		}
		old.Agreed = k.Agreed
		return true, d.save()
	}
	open := 0
	for _, o := range d.list {
		if f, _ := o.parties(); f == from && o.state(d.n.account, time.Now()) == api.AgreementAsked {
			open++
		}
	}
	if from != d.n.account && open >= maxAskedBy || len(d.list) >= maxAgreements {
		return false, pcm.Errorf(pcm.Busy, "%d offers of account %s are unanswered here: wait until some are", open, pcm.Short(from))
	}
	d.list[id] = k
	return true, d.save()
}

type agreeRequest struct {
	Agreed pcm.Agreed `cbor:"1,keyasint"`
	Domain pcm.Domain `cbor:"2,keyasint"`
}

// serve takes offers and acceptances of others. What is accepted is brought to this
// peer's cell at once; nothing is ever accepted without a person.
func (d *deals) serve(_ context.Context, from pcm.Passport, raw []byte) ([]byte, error) {
	if !d.n.asking.may(from.Peer, time.Now()) {
		return nil, pcm.Errorf(pcm.Busy, "peer %s has asked too often", pcm.Short(from.Peer))
	}
	var r agreeRequest
	if err := pcm.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	if r.Domain != pcm.DomainNetting && r.Domain != pcm.DomainResolution {
		return nil, pcm.Errorf(pcm.Invalid, "%.40q is no kind of agreement", r.Domain)
	}
	k := &deal{Agreed: r.Agreed, Domain: r.Domain, At: time.Now().UTC()}
	news, err := d.keep(k)
	if err != nil {
		return nil, err
	}
	if news {
		by, _ := k.parties()
		d.n.log.Info("an agreement came in: see 'pcm account net list'", "id", k.id(), "from", pcm.Short(by), "accepted", k.both())
	}
	if k.both() {
		go d.carry(d.n.run, k.id())
	}
	return nil, nil
}

// deliver hands a deal to a peer of the other account, and says how that went.
func (d *deals) deliver(ctx context.Context, k *deal) string {
	from, other := k.parties()
	if other == d.n.account {
		other = from
	}
	if other == d.n.account {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, dealsWait)
	defer cancel()
	raw := pcm.MustMarshal(agreeRequest{k.Agreed, k.Domain})
	why := "none of its peers is known here"
	for _, p := range d.n.peersOfAccount(other) {
		if _, err := d.n.mesh.Call(ctx, p, protoAgree, raw); err != nil {
			why = err.Error()
			continue
		}
		return "handed to peer " + orElse(d.n.names()[p], pcm.Short(p))
	}
	return "account " + pcm.Short(other) + " could not be reached (" + clip(why) + "): pass the line on"
}

// peersOfAccount are the peers of an account that are known here, those that are connected first.
func (n *Node) peersOfAccount(account pcm.AccountID) []pcm.PeerID {
	var near, far []pcm.PeerID
	for _, p := range n.mesh.Peers() {
		switch {
		case p.Passport.Account != account:
		case p.Connected:
			near = append(near, p.Passport.Peer)
		default:
			far = append(far, p.Passport.Peer)
		}
	}
	return append(near, far[:min(len(far), 4)]...)
}

// carry brings what both have signed to the cells that it is for, to all of them
// at once: one that is silent, or refuses, keeps no other from it.
func (d *deals) carry(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, dealsWait)
	defer cancel()
	d.mu.Lock()
	k := d.list[id]
	if k == nil || !k.both() || k.Over != "" {
		d.mu.Unlock()
		return
	}
	op := k.op()
	cells := slices.DeleteFunc(k.cells(), func(c pcm.CellID) bool { return k.In[c] || k.Refused[c] != "" })
	d.mu.Unlock()
	errs := make([]error, len(cells))
	var wg sync.WaitGroup
	for i, c := range cells {
		wg.Go(func() {
			if errs[i] = d.n.mustIn(ctx, c, op); errs[i] != nil && d.resolved(ctx, op) {
				errs[i] = nil // the other side was faster
			}
		})
	}
	wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if k = d.list[id]; k == nil {
		return
	}
	k.learn(cells, errs, d.n.cellName)
	d.n.owed.stale.Store(true)
	if err := d.save(); err != nil {
		d.n.log.Warn("can't keep what became of an agreement", "id", id, "error", err)
	}
}

// learn takes in what became of it in some cells. What a cell has refused it will
// never have; others may.
func (k *deal) learn(cells []pcm.CellID, errs []error, name func(pcm.CellID) string) {
	in, refused := maps.Clone(k.In), maps.Clone(k.Refused)
	if in == nil {
		in = map[pcm.CellID]bool{}
	}
	if refused == nil {
		refused = map[pcm.CellID]string{}
	}
	var waits, why []string
	for i, c := range cells {
		switch code := pcm.ErrorCode(errs[i]); {
		case errs[i] == nil:
			in[c] = true
			delete(refused, c)
		case code == pcm.Unavailable || code == pcm.Busy || errors.Is(errs[i], context.DeadlineExceeded) || errors.Is(errs[i], context.Canceled):
			waits = append(waits, "waits for "+name(c)+": "+errs[i].Error())
		case !in[c]:
			refused[c] = clip(name(c) + ": " + errs[i].Error())
		}
	}
	for _, c := range sortedKeys(refused) {
		why = append(why, "refused by "+refused[c])
	}
	k.In, k.Refused, k.Text = in, refused, clip(strings.Join(append(waits, why...), "; "))
	if len(in)+len(refused) == len(k.cells()) {
		k.Over = clip(strings.Join(why, "; "))
	}
}

// resolved tells whether a dispute was ended as agreed.
func (d *deals) resolved(ctx context.Context, op pcm.Op) bool {
	if op.Resolve == nil {
		return false
	}
	r, err := op.Resolve.Open()
	if err != nil {
		return false
	}
	t, cell, err := d.n.tradeAnywhere(ctx, r.Trade)
	if err != nil || cell != r.Cell {
		return false
	}
	var sum pcm.Micro
	for i := range r.Tasks.All {
		at := t.Attempt(i)
		if at == nil || at.State != pcm.AttemptSettled {
			return false
		}
		sum = pcm.AddMicro(sum, at.Charge)
	}
	return sum == r.Amount
}

// run brings what was agreed to cells that could not be reached.
func (d *deals) run(ctx context.Context) error {
	for pause(ctx, dealsRetry) {
		var open []string
		d.mu.Lock()
		for id, k := range d.list {
			if k.state(d.n.account, time.Now()) == api.AgreementAgreed {
				open = append(open, id)
			}
		}
		d.mu.Unlock()
		slices.Sort(open)
		for _, id := range open {
			d.carry(ctx, id)
		}
	}
	return nil
}

// view shows a deal. It needs the lock.
func (d *deals) view(k *deal) api.Agreement {
	from, to := k.parties()
	v := api.Agreement{
		ID: k.id(), Kind: api.AgreeResolution, State: k.state(d.n.account, time.Now()), From: from, To: to,
		At: k.At.UTC(), Until: k.until(), Text: orElse(k.Over, k.Text), Line: k.Agreed.Line(k.Domain),
	}
	if k.Domain != pcm.DomainNetting {
		v.Trade, v.Tasks, v.Amount, v.Note = k.res.Trade, k.res.Tasks.String(), k.res.Amount.String(), k.res.Note
		v.Cell, v.Unit = k.res.Cell, d.n.unitOf(k.res.Trade)
		return v
	}
	v.Kind, v.Unit, v.Note = api.AgreeNetting, k.net.Unit, k.net.Note
	v.Lines = linesView(k.net.Lines)
	if payer, _, amount := k.net.Payment(); amount > 0 {
		v.Payer, v.Rest = payer, amount.String()
	}
	return v
}

func linesView(lines []pcm.NettingLine) (list []api.AgreementLine) {
	for _, l := range lines {
		list = append(list, api.AgreementLine{Cell: l.Cell, From: l.ByA.String(), To: l.ByB.String()})
	}
	return list
}
