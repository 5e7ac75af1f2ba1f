package ledger

import (
	"maps"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// Bounds of what a cell remembers of peers.
const (
	maxMembers   = 10_000
	maxBurned    = 100_000
	maxPoolsEach = 64
	// maxInvite bounds the validity of a token when it is used: it has to be
	// remembered for so long.
	maxInvite = 31 * 24 * time.Hour
)

// enroll makes a peer known, or renews what is known of it.
func (a *applying) enroll(signer pcm.PeerID, op *pcm.Enroll) (bool, error) {
	p, err := pcm.OpenPassport(op.Passport, a.genesis.Root, time.UnixMilli(a.entry.Wall))
	if err != nil {
		return false, err
	}
	m := a.members[p.Peer]
	switch {
	case a.by == nil && p.Peer != signer:
		return false, pcm.Errorf(pcm.Unauthorized, "peer %s is not known here and can enroll only itself", pcm.Short(signer))
	case m == nil && len(a.members) >= maxMembers:
		return false, pcm.Errorf(pcm.Refused, "%s has %d members, which is its bound: join another cell", pcm.Short(a.genesis.Cell), len(a.members))
	case m != nil && m.Account != p.Account:
		return false, pcm.Errorf(pcm.Refused, "peer %s belongs to account %s: an account can't be changed", pcm.Short(p.Peer), pcm.Short(m.Account))
	case m != nil && p.NotAfter < m.NotAfter:
		return false, nil // an older passport: nothing to learn
	}
	if m == nil {
		m = &Member{Peer: p.Peer, Account: p.Account, RenewedAt: a.stamp}
		a.members[p.Peer] = m
	}
	changed := m.NotAfter != p.NotAfter || m.Name != p.Name || !maps.Equal(m.Labels, p.Labels)
	m.Name, m.Labels, m.NotAfter = p.Name, p.Labels, p.NotAfter
	return changed, nil
}

// burn uses an invite up for one peer.
func (a *applying) burn(op *pcm.Burn) (bool, error) {
	inv, err := pcm.OpenInvite(op.Invite)
	if err != nil {
		return false, err
	}
	if inv.Mesh != a.genesis.Mesh || inv.Cell != a.genesis.Cell {
		return false, pcm.Errorf(pcm.Refused, "the token is for %s of %s, this is %s of %s", inv.Cell, inv.Mesh, a.genesis.Cell, a.genesis.Mesh)
	}
	if _, known := a.members[inv.Issuer]; !known {
		return false, pcm.Errorf(pcm.Refused, "the token was made by peer %s, who is not of this cell", pcm.Short(inv.Issuer))
	}
	if b, ok := a.burned[inv.Hash]; ok {
		if b.Peer == op.Peer {
			return false, nil
		}
		return false, pcm.Errorf(pcm.Refused, "the token was used by another peer: a token works once, ask for a new one")
	}
	if a.entry.Wall > inv.NotAfter+pcm.Skew.Milliseconds() {
		return false, pcm.Errorf(pcm.Refused, "the token expired at %s: ask for a new one", time.UnixMilli(inv.NotAfter).UTC().Format(time.RFC3339))
	}
	if inv.NotAfter > a.entry.Wall+(maxInvite+pcm.Skew).Milliseconds() {
		return false, pcm.Errorf(pcm.Refused, "the token is valid for more than %d days from now: ask for a new one with a shorter validity", maxInvite/(24*time.Hour))
	}
	if len(op.Peer.Public()) == 0 {
		return false, pcm.Errorf(pcm.Invalid, "%q is not a peer ID", op.Peer)
	}
	if len(a.burned) >= maxBurned && !a.sweepBurned() {
		return false, pcm.Errorf(pcm.Busy, "%d tokens were used that are still within their validity: let some expire first", len(a.burned))
	}
	a.burned[inv.Hash] = Burned{Peer: op.Peer, NotAfter: inv.NotAfter}
	return true, nil
}

// sweepBurned forgets invites that would be refused by time. It tells whether
// there is room now; if not, nothing is forgotten, as a refused Burn leaves no
// record from which that would follow.
func (a *applying) sweepBurned() bool {
	past := func(b Burned) bool { return a.entry.Wall > b.NotAfter+2*pcm.Skew.Milliseconds() }
	n := 0
	for _, k := range slices.Sorted(maps.Keys(a.burned)) {
		if past(a.burned[k]) {
			n++
		}
	}
	if len(a.burned)-n >= maxBurned {
		return false
	}
	maps.DeleteFunc(a.burned, func(_ pcm.Digest, b Burned) bool { return past(b) })
	return true
}

// capacity replaces what the signing peer sells here.
func (a *applying) capacity(op *pcm.Capacity) (bool, error) {
	if op.Offer <= a.by.Offer {
		return false, pcm.Errorf(pcm.Conflict, "offer %d is not newer than %d, which is declared", op.Offer, a.by.Offer)
	}
	if len(op.Pools) > maxPoolsEach {
		return false, pcm.Errorf(pcm.Invalid, "%d pools are too many: at most %d for each peer", len(op.Pools), maxPoolsEach)
	}
	if op.Credit < 0 || op.Credit > maxMoney {
		return false, pcm.Errorf(pcm.Invalid, "a credit limit of %s is out of range: 0 to %s", op.Credit, maxMoney)
	}
	named := map[pcm.PoolID]bool{}
	for _, p := range op.Pools {
		if err := p.Validate(); err != nil {
			return false, err
		}
		if named[p.ID] {
			return false, pcm.Errorf(pcm.Invalid, "pool %s is declared twice", p.ID)
		}
		named[p.ID] = true
	}
	a.by.Offer, a.by.Credit = op.Offer, op.Credit
	for _, k := range slices.SortedFunc(maps.Keys(a.pools), PoolKey.compare) {
		if k.Peer != a.by.Peer || named[k.Pool] {
			continue
		}
		if p := a.pools[k]; p.Slots > 0 {
			p.Closed = true
		} else {
			delete(a.pools, k)
		}
	}
	for _, declared := range op.Pools {
		k := PoolKey{a.by.Peer, declared.ID}
		p := a.pools[k]
		if p == nil {
			p = &Pool{}
			a.pools[k] = p
		}
		// Shrinking below what is reserved would break "reserved ≤ declared":
		// the pool keeps what its trades hold, and shrinks as they end.
		p.Pool, p.Offer, p.Closed = declared, op.Offer, false
		p.Shrunk = !p.fits()
	}
	return true, nil
}

// renew extends the signing peer's leases.
func (a *applying) renew(op *pcm.Renew) (bool, error) {
	if op.Incarnation < a.by.Incarnation {
		return false, pcm.Errorf(pcm.Conflict, "incarnation %d of peer %s is over, %d is current: two daemons may be using one data folder", op.Incarnation, pcm.Short(a.by.Peer), a.by.Incarnation)
	}
	// Else nothing depends on it. What later renewals are judged by is kept in any case.
	worth := a.by.Live > 0 || a.by.Drives > 0 || op.Incarnation != a.by.Incarnation
	a.by.Incarnation, a.by.RenewedAt = op.Incarnation, a.stamp
	return worth, nil
}
