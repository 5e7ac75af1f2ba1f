package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// How long an offer to net can be accepted.
const (
	nettingFor  = 7 * 24 * time.Hour
	nettingMost = 30 * 24 * time.Hour
)

// Agreements lists offers between this account and others.
func (n *Node) Agreements(context.Context) ([]api.Agreement, error) {
	n.deals.mu.Lock()
	defer n.deals.mu.Unlock()
	list := []api.Agreement{}
	for _, k := range n.deals.list {
		list = append(list, n.deals.view(k))
	}
	slices.SortFunc(list, func(a, b api.Agreement) int {
		if c := b.At.Compare(a.At); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// offered keeps an offer of this account and hands it to the other one.
func (n *Node) offered(ctx context.Context, k *deal) (api.Agreement, error) {
	if _, err := n.deals.keep(k); err != nil {
		return api.Agreement{}, err
	}
	var carrying sync.WaitGroup
	if k.both() { // neither a silent account nor a silent cell holds up the other
		carrying.Go(func() { n.deals.carry(ctx, k.id()) })
	}
	text := n.deals.deliver(ctx, k)
	carrying.Wait()
	n.deals.mu.Lock()
	defer n.deals.mu.Unlock()
	kept := n.deals.list[k.id()]
	if kept == nil {
		return api.Agreement{}, pcm.Errorf(pcm.Internal, "%s was dropped meanwhile", k.id())
	}
	v := n.deals.view(kept)
	if v.Text == "" {
		v.Text = text
	}
	return v, nil
}

// debts are what two accounts owe each other in a cell.
type debts struct {
	Cell   pcm.CellID `cbor:"-"`
	AB     pcm.Micro  `cbor:"1,keyasint"` // what the asking account owes
	BA     pcm.Micro  `cbor:"2,keyasint"` // what it is owed
	Silent string     `cbor:"-"`          // why it isn't known what they owe there; "": it is
	Likely bool       `cbor:"-"`          // one of the two sells there, or has bought there
}

type balancesQuery struct {
	With pcm.AccountID `cbor:"1,keyasint"`
	Unit string        `cbor:"2,keyasint"`
}

func (n *Node) debtsHere(a, b pcm.AccountID, unit string) (d debts) {
	n.cell.View(func() {
		d.AB = n.state.BalanceOf(ledger.BalanceKey{Buyer: a, Seller: b, Unit: unit}).Owed
		d.BA = n.state.BalanceOf(ledger.BalanceKey{Buyer: b, Seller: a, Unit: unit}).Owed
	})
	d.Cell = n.id.Mesh.Cell
	return d
}

// answerBalances tells a peer outside the cell what its account owes another, and is owed.
func (n *Node) answerBalances(from pcm.PeerID, body []byte) ([]byte, error) {
	var q balancesQuery
	if err := pcm.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	p, ok := n.mesh.Passport(from)
	if !ok {
		return nil, pcm.Errorf(pcm.Forbidden, "the account of peer %s is not known here", pcm.Short(from))
	}
	return pcm.Marshal(n.debtsHere(p.Account, q.With, q.Unit))
}

// cellsTraded are the other cells in which given accounts may owe each other: those
// in which one of them sells or from which this peer's cell has bought come first,
// then all others that are known.
func (n *Node) cellsTraded(accounts ...pcm.AccountID) (cells []pcm.CellID, likely int) {
	add := func(c pcm.CellID) {
		if c != n.id.Mesh.Cell && c.Valid() && !slices.Contains(cells, c) {
			cells = append(cells, c)
		}
	}
	for _, row := range n.mesh.Offers() {
		if p, ok := n.mesh.Passport(row.Offer.Peer); ok && slices.Contains(accounts, p.Account) {
			add(row.Offer.Cell)
		}
	}
	n.eachBought(func(t *pcm.Terms) {
		if slices.Contains(accounts, t.Buyer) {
			add(t.Cell)
		}
	})
	likely = len(cells)
	for _, d := range n.otherCells() {
		add(d.Cell)
	}
	return cells, likely
}

// eachBought calls f with the terms of what this peer's cell knows to be bought in other ones.
func (n *Node) eachBought(f func(*pcm.Terms)) {
	n.cell.View(func() {
		for _, j := range n.state.Jobs() {
			for k := range j.Places {
				if t := j.Places[k].Terms; t != nil {
					f(t)
				}
			}
		}
	})
	old, err := archived(n, boughtKeys, boughtAt)
	if err != nil {
		n.log.Warn("can't read what was bought in other cells", "error", err)
	}
	for _, k := range old {
		f(&k.Terms)
	}
}

// debtsWith are this account's with another one, in all cells that are known, as
// far as a netting can name them. Cells are asked at once: who is silent keeps
// nobody waiting longer than silentFor.
func (n *Node) debtsWith(ctx context.Context, with pcm.AccountID, unit string) []debts {
	cells, likely := n.cellsTraded(with, n.account)
	all := make([]debts, min(len(cells), pcm.MaxNettingLines-1))
	ctx, cancel := context.WithTimeout(ctx, silentFor)
	defer cancel()
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			d := &all[i]
			away, err := n.aways.to(cells[i])
			if err == nil {
				err = away.Query(ctx, queryBalances, balancesQuery{with, unit}, d)
			}
			if err == nil && (d.AB < 0 || d.BA < 0) {
				err = pcm.Errorf(pcm.Invalid, "it says that %s and %s are owed", d.AB, d.BA)
			}
			if err != nil {
				*d = debts{Silent: clip(err.Error())}
			}
			d.Cell, d.Likely = cells[i], i < likely
		})
	}
	wg.Wait()
	all = append(all, n.debtsHere(n.account, with, unit))
	slices.SortFunc(all, func(a, b debts) int { return strings.Compare(string(a.Cell), string(b.Cell)) })
	return all
}

// silentFor is how long cells are waited for that are asked what is owed in them.
const silentFor = 6 * time.Second

// foundView is what was found in each cell that was asked: all in which something is
// owed, and all that are silent.
func (n *Node) foundView(all []debts) (list []api.AgreementDebt) {
	bought := map[pcm.CellID]bool{n.id.Mesh.Cell: true} // by this account, as far as this peer's cell knows
	n.eachBought(func(t *pcm.Terms) { bought[t.Cell] = bought[t.Cell] || t.Buyer == n.account })
	for _, d := range all {
		if d.Silent == "" && d.AB == 0 && d.BA == 0 && d.Cell != n.id.Mesh.Cell {
			continue
		}
		v := api.AgreementDebt{Cell: d.Cell, Name: n.id.Mesh.CellName, Silent: d.Silent}
		if row, ok := n.cellRow(d.Cell); ok {
			v.Name = row.Descriptor.Name
		}
		if d.Silent == "" {
			v.From, v.To = d.AB.String(), d.BA.String()
			v.Unseen = d.AB > 0 && !bought[d.Cell]
		}
		list = append(list, v)
	}
	return list
}

// waitFor refuses to net without cells in which something may well be owed.
func (n *Node) waitFor(all []debts) error {
	var silent, found []string
	for _, d := range all {
		switch {
		case d.Silent != "" && d.Likely:
			silent = append(silent, n.cellName(d.Cell))
		case d.AB > 0 || d.BA > 0:
			found = append(found, fmt.Sprintf("%s %s, and is owed %s", n.cellName(d.Cell), d.AB, d.BA))
		}
	}
	if len(silent) == 0 {
		return nil
	}
	return pcm.Errorf(pcm.Unavailable, "it isn't known what is owed in %s, which did not answer; elsewhere this account owes: in %s. Retry when it answers, or leave it out with --partial", strings.Join(silent, " and in "), orElse(strings.Join(found, "; in "), "no cell anything"))
}

// strikes are the lines of a netting: what both owe each other is set off, and
// besides what the one that owes more has paid.
func strikes(all []debts, paid pcm.Micro, everything bool) ([]pcm.NettingLine, error) {
	var ab, ba pcm.Micro
	for _, d := range all {
		ab, ba = pcm.AddMicro(ab, d.AB), pcm.AddMicro(ba, d.BA)
	}
	left := max(ab, ba) - min(ab, ba)
	if everything {
		paid = left
	}
	if paid < 0 || paid > left {
		return nil, pcm.Errorf(pcm.Invalid, "%s can't have been paid: what is left when both debts are set off is %s", paid, left)
	}
	byA, byB := min(ab, ba), min(ab, ba)
	if ab >= ba {
		byA += paid
	} else {
		byB += paid
	}
	switch {
	case max(ab, ba) == 0:
		return nil, pcm.Errorf(pcm.Refused, "neither account owes the other anything")
	case byA+byB == 0:
		return nil, pcm.Errorf(pcm.Refused, "nothing can be set off: this account owes %s, and is owed %s; say with --paid what was paid outside", ab, ba)
	}
	var lines []pcm.NettingLine
	for _, d := range all {
		l := pcm.NettingLine{Cell: d.Cell, ByA: min(d.AB, byA), ByB: min(d.BA, byB)}
		byA, byB = byA-l.ByA, byB-l.ByB
		if l.ByA+l.ByB > 0 {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// ProposeNetting offers an account to strike what both owe each other.
func (n *Node) ProposeNetting(ctx context.Context, r api.NettingRequest) (api.Agreement, error) {
	n.fresh(ctx)
	ctx, cancel := context.WithTimeout(ctx, dealsWait)
	defer cancel()
	typed, err := n.party(r.With)
	if err != nil {
		return api.Agreement{}, err
	}
	with := pcm.AccountID(typed)
	if len(with.Public()) == 0 { // a peer
		n.cell.View(func() {
			if m, ok := n.state.Member(pcm.PeerID(typed)); ok {
				with = m.Account
			}
		})
		if p, ok := n.mesh.Passport(pcm.PeerID(typed)); ok {
			with = p.Account
		}
	}
	valid, err := r.ValidFor.Get(nettingFor)
	if err != nil {
		return api.Agreement{}, err
	}
	unit := orElse(r.Unit, pcm.DefaultUnit)
	var paid pcm.Micro
	if r.Paid != "" && r.Paid != "all" {
		if paid, err = pcm.ParseMicro(r.Paid); err != nil {
			return api.Agreement{}, err
		}
	}
	switch {
	case with == n.account:
		return api.Agreement{}, pcm.Errorf(pcm.Invalid, "%s is this account itself: trade within one account moves no money", r.With)
	case valid < time.Minute || valid > nettingMost:
		return api.Agreement{}, pcm.Errorf(pcm.Invalid, "an offer can't be valid for %s: 1m to %s", valid, nettingMost)
	case len(with.Public()) == 0 || !pcm.ValidName(unit):
		return api.Agreement{}, pcm.Errorf(pcm.Invalid, "there is no account %.40q, or no unit %.40q", r.With, unit)
	}
	if err := checkNote("note", r.Note); err != nil {
		return api.Agreement{}, err
	}
	all := n.debtsWith(ctx, with, unit)
	if !r.Partial {
		if err := n.waitFor(all); err != nil {
			return api.Agreement{}, err
		}
	}
	lines, err := strikes(all, paid, r.Paid == "all")
	if err != nil {
		return api.Agreement{}, err
	}
	// A cell's word is all there is of what is owed in it, and a netting sets one cell's debts
	// off against another's: a person looks before this account signs.
	found, shown := n.foundView(all), linesView(lines)
	switch {
	case r.DryRun:
		net := pcm.Netting{A: n.account, B: with, Lines: lines}
		v := api.Agreement{
			Kind: api.AgreeNetting, State: api.AgreementLooked, From: n.account, To: with, Unit: unit, Lines: shown,
			Found: found, Note: r.Note, At: time.Now().UTC(), Until: time.Now().Add(valid).UTC(),
		}
		if payer, _, amount := net.Payment(); amount > 0 {
			v.Payer, v.Rest = payer, amount.String()
		}
		return v, nil
	case len(r.Expect) > 0 && !slices.Equal(r.Expect, shown):
		return api.Agreement{}, pcm.Errorf(pcm.Conflict, "what is owed has changed since it was shown: nothing was signed; look again")
	}
	k := &deal{Domain: pcm.DomainNetting, At: time.Now().UTC(), Agreed: pcm.Netting{
		Mesh: n.id.Mesh.Mesh, ID: pcm.NewNettingID(), A: n.account, B: with, Unit: unit, Lines: lines,
		NotAfter: time.Now().Add(valid).UnixMilli(), Note: r.Note,
	}.Offer(n.id.Account)}
	n.audit.operator(ctx, "offer", api.AuditEntry{Subject: string(with), Reason: "to net debts"})
	v, err := n.offered(ctx, k)
	v.Found = found
	return v, err
}

// Agree accepts an offer.
func (n *Node) Agree(ctx context.Context, offer string) (api.Agreement, error) {
	k, err := n.deals.find(offer)
	if err != nil {
		return api.Agreement{}, err
	}
	from, to := k.parties()
	if !k.both() {
		if to != n.account {
			return api.Agreement{}, pcm.Errorf(pcm.Refused, "%s is this account's own offer: account %s has to accept it", k.id(), pcm.Short(to))
		}
		if s := k.state(n.account, time.Now()); s == api.AgreementOver {
			return api.Agreement{}, pcm.Errorf(pcm.Conflict, "%s can't be accepted any more: %s", k.id(), orElse(k.Over, "it has expired; ask for a new one"))
		}
		k = &deal{Domain: k.Domain, At: k.At, Agreed: k.Agreed.Accept(k.Domain, n.id.Account)}
		n.audit.operator(ctx, "agree", api.AuditEntry{Subject: string(from), Reason: fmt.Sprintf("to %s", offer[:min(len(offer), 24)])})
	}
	return n.offered(ctx, k)
}

// find looks an offer up by its ID, or reads it.
func (d *deals) find(typed string) (*deal, error) {
	if strings.HasPrefix(strings.TrimSpace(typed), "pcm-") {
		a, domain, err := pcm.ParseAgreed(typed)
		if err != nil {
			return nil, err
		}
		k := &deal{Agreed: a, Domain: domain, At: time.Now().UTC()}
		if _, err := d.keep(k); err != nil {
			return nil, err
		}
		typed = k.id()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []*deal
	for id, k := range d.list {
		_, bare, _ := strings.Cut(id, "-")
		if id == typed {
			return k.copy(), nil
		}
		if typed != "" && (strings.HasPrefix(id, typed) && strings.Contains(typed, "-") || strings.HasPrefix(bare, typed)) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return nil, pcm.Errorf(pcm.NotFound, "there is no offer %.40q here; see 'pcm account net list', or give the line that the other account has passed on", typed)
	case 1:
		return found[0].copy(), nil
	}
	return nil, pcm.Errorf(pcm.Invalid, "%.40q could be any of %d offers: give more of the ID", typed, len(found))
}

func (k *deal) copy() *deal { c := *k; return &c }
