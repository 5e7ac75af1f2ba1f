package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/mesh"
	"github.com/jointcloud/pcm/node/api"
)

// openIdentity finds out who this peer is: it goes on in the mesh of its data
// folder, joins the one of the token, or founds one.
func (n *Node) openIdentity(ctx context.Context) error {
	id, member, err := loadIdentity(n.cfg.Dir, n.cfg.AccountKey)
	if err != nil {
		return err
	}
	n.id = id
	switch {
	case member && n.cfg.Join != "":
		_, inv, err := pcm.ParseToken(n.cfg.Join)
		if err != nil {
			return err
		}
		if inv.Mesh != id.Mesh.Mesh {
			return pcm.Errorf(pcm.Conflict, "the data folder %s belongs to %s, the token is for %s: use another folder (--data), or give the membership up with 'pcm leave'", n.cfg.Dir, id.Mesh.Mesh, inv.Mesh)
		}
		return n.restate() // joined before: the token has done its work
	case member:
		return n.restate()
	case n.cfg.Join != "":
		// A token works once: what can fail here, fails before it is used.
		if err := mesh.CheckListen(n.cfg.Listen); err != nil {
			return err
		}
		return n.join(ctx, n.cfg.Join)
	}
	cell, err := foundingName(n.cfg.Cell, n.cfg.Name)
	if err != nil {
		return err
	}
	return id.found(n.cfg.Dir, n.cfg.Name, cell, n.cfg.Labels, time.Now())
}

// restate brings the passport in line with what the configuration says of this
// peer now, where the root key is; elsewhere only a new join can do that.
func (n *Node) restate() error {
	var p pcm.Passport
	if err := pcm.Unmarshal(n.id.Mesh.Passport.Payload, &p); err != nil {
		return err
	}
	if n.saysSame(p) || n.id.Root == nil {
		return nil
	}
	n.id.Mesh.Passport = n.id.issueOwn(n.cfg.Name, n.cfg.Labels, time.Now())
	return n.id.save(n.cfg.Dir)
}

// saysSame tells whether the passport says of this peer what its configuration says.
func (n *Node) saysSame(p pcm.Passport) bool {
	return p.Name == n.cfg.Name && maps.Equal(p.Labels, n.cfg.Labels)
}

// join gets a passport for a token.
func (n *Node) join(ctx context.Context, token string) (err error) {
	if n.id.Mesh, err = n.redeem(ctx, token, n.cfg.Cell); err != nil {
		return err
	}
	return n.id.save(n.cfg.Dir)
}

// redeem takes a token to its issuer, and comes back with a membership: in a cell
// of the mesh, or in one of this peer's own, which is then to be founded.
func (n *Node) redeem(ctx context.Context, token, cell string) (membership, error) {
	reply, err := mesh.Join(ctx, mesh.JoinConfig{
		Key: n.id.Peer, Account: n.id.Account, Name: n.cfg.Name, Labels: n.cfg.Labels, Token: token, Cell: cell, Level: pcm.LedgerLevel, Logger: n.log,
	})
	if err != nil {
		return membership{}, err
	}
	m := membership{
		Mesh: pcm.NewMeshID(reply.Root), Root: hex.EncodeToString(reply.Root), Cell: reply.Cell, CellName: reply.CellName,
		Passport: reply.Passport, Bootstrap: reply.Peers, Voters: reply.Voters,
	}
	if reply.Found {
		m.Cell, m.Founded, m.Voters = pcm.NewCellID(), true, nil
	}
	return m, nil
}

// Join moves this peer, which must have nothing but its founding, into another
// mesh, and there into a cell as [Config.Cell] names it.
func (n *Node) Join(ctx context.Context, token, cell string) (api.Status, error) {
	_, inv, err := pcm.ParseToken(token)
	if err != nil {
		return api.Status{}, err
	}
	if inv.Mesh == n.id.Mesh.Mesh {
		return api.Status{}, pcm.Errorf(pcm.Conflict, "this peer is in %s already", inv.Mesh)
	}
	var used bool
	n.cell.View(func() {
		used = len(n.state.Members()) > 1 || len(n.state.Jobs()) > 0
	})
	if docs, _, err := n.documents("job/", "", 1); err == nil && len(docs) > 0 {
		used = true
	}
	if used || !n.id.Mesh.Founded {
		return api.Status{}, pcm.Errorf(pcm.Refused, "this peer has a ledger of its own in %s with more than its founding: leave it first with 'pcm leave', or start a second peer with 'pcm up --data DIR --join TOKEN'", n.id.Mesh.Mesh)
	}
	// The old membership is dropped only when the new one is certain.
	next, err := n.redeem(ctx, token, cell)
	if err != nil {
		return api.Status{}, err
	}
	status, _ := n.Status(ctx)
	if err := next.beginMove(n.cfg.Dir); err != nil {
		return api.Status{}, err
	}
	n.rejoin.Store(true)
	status.Mesh, status.Cell, status.CellName, status.Ready = next.Mesh, next.Cell, next.CellName, false
	status.Role, status.Leader, status.Peers = "none", "", 0
	status.Reason = "moving to the new mesh"
	n.stop(ErrRejoin)
	return status, nil
}

// maxInvite bounds how long a token may be valid.
const maxInvite = 30 * 24 * time.Hour

// Invite makes a token for one peer to join this node's cell.
func (n *Node) Invite(_ context.Context, validFor time.Duration, issuer bool) (api.Invitation, error) {
	if !n.mesh.Own().Has(pcm.RoleIssuer) {
		return api.Invitation{}, pcm.Errorf(pcm.Forbidden, "this peer may not issue passports: run 'pcm invite' on the peer that founded the mesh, or have that one invite this one with --issuer")
	}
	if validFor <= 0 || validFor > maxInvite {
		return api.Invitation{}, pcm.Errorf(pcm.Invalid, "a token is valid for up to %s, not for %s", maxInvite, validFor)
	}
	secret := make([]byte, 16)
	rand.Read(secret) // never fails since Go 1.24
	notAfter := time.Now().Add(validFor)
	inv := pcm.Invite{
		Mesh: n.id.Mesh.Mesh, Root: n.id.Mesh.root(), Cell: n.id.Mesh.Cell, Issuer: n.self,
		Addrs: n.mesh.Addrs(), Hash: pcm.DigestOf(secret), NotAfter: notAfter.UnixMilli(),
	}
	if len(inv.Addrs) == 0 {
		return api.Invitation{}, pcm.Errorf(pcm.Unavailable, "this peer listens nowhere that others could dial: set --listen or --announce")
	}
	if issuer {
		inv.Roles = []pcm.Role{pcm.RoleIssuer}
	}
	token := pcm.Token{Invite: n.id.Peer.Seal(pcm.DomainInvite, inv), Secret: secret}
	return api.Invitation{ID: string(inv.Hash[:16]), Token: token.String(), NotAfter: notAfter}, nil
}

// admit serves a join: the secret is burned by a committed record before a
// passport is issued, so a token works once whatever fails in between.
func (n *Node) admit(ctx context.Context, req mesh.JoinRequest, inv pcm.Invite, from pcm.PeerID) (mesh.JoinReply, error) {
	none := mesh.JoinReply{}
	if inv.Cell != n.id.Mesh.Cell {
		return none, pcm.Errorf(pcm.Refused, "the token is for %s, this peer is of %s: a token works only in the cell that made it", inv.Cell, n.id.Mesh.Cell)
	}
	if !n.mesh.Own().Has(pcm.RoleIssuer) || inv.Issuer != n.self {
		return none, pcm.Errorf(pcm.Refused, "the token was made by peer %s and is redeemed there", pcm.Short(inv.Issuer))
	}
	homes, err := n.homesOf(ctx, req) // what can be refused is refused before the token is used
	if err == nil {
		homes, err = n.followable(ctx, homes, req.Level)
	}
	if err != nil {
		return none, err
	}
	if _, err := n.must(ctx, pcm.Op{Burn: &pcm.Burn{Invite: req.Invite, Peer: from}}); err != nil {
		return none, err
	}
	passport, err := n.issue(req.Statement(n.id.Mesh.Mesh, inv.Roles))
	if err != nil {
		return none, err
	}
	if _, err := n.must(ctx, pcm.Op{Enroll: &pcm.Enroll{Passport: passport}}); err != nil {
		return none, err
	}
	reply, err := n.settleIn(ctx, homes, from, passport)
	if err != nil {
		return none, err
	}
	n.log.Info("a peer joined", "joined", pcm.Short(from), "name", req.Name, "account", pcm.Short(req.Account), "cell", orElse(string(reply.Cell), "its own"))
	reply.Passport, reply.Root = passport, n.id.Mesh.root()
	return reply, nil
}

// knownAddrs are addresses for a newcomer to begin with: this peer's and those
// of the peers that it is connected to, at most 64.
func (n *Node) knownAddrs() []string {
	addrs := n.mesh.Addrs()
	for _, p := range n.mesh.Peers() {
		if !p.Connected {
			continue
		}
		for _, a := range p.Addrs {
			if !strings.Contains(a, "/p2p/") {
				a += "/p2p/" + string(p.Passport.Peer)
			}
			if !slices.Contains(addrs, a) && len(addrs) < 64 {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// issue signs a passport, with the root key where it is, else as an issuer.
func (n *Node) issue(p pcm.Passport) (pcm.Signed, error) {
	if n.id.Root != nil {
		return pcm.IssuePassport(*n.id.Root, n.id.Mesh.root(), pcm.Signed{}, p, time.Now())
	}
	return pcm.IssuePassport(n.id.Peer, n.id.Mesh.root(), n.mesh.Signed(), p, time.Now())
}

// selfIssue renews this peer's passport where the root key is; nil elsewhere.
func (n *Node) selfIssue() func() (pcm.Signed, error) {
	if n.id.Root == nil {
		return nil
	}
	return func() (pcm.Signed, error) { return n.id.issueOwn(n.cfg.Name, n.cfg.Labels, time.Now()), nil }
}

// keepPassport stores a renewed passport and has it enrolled.
func (n *Node) keepPassport(s pcm.Signed) {
	n.id.Mesh.Passport = s // read before Run and written by the mesh's loop only
	if err := n.id.save(n.cfg.Dir); err != nil {
		n.log.Error("can't store the renewed passport", "error", err)
	}
	select {
	case n.renewed <- struct{}{}:
	default:
	}
}

// enrol sees to it that the cell knows this peer by its current passport.
func (n *Node) enrol(ctx context.Context) error {
	began := time.Now()
	for {
		if err := n.enrolOnce(ctx, n.mesh.Own()); err != nil && ctx.Err() == nil {
			wait := 50 * time.Millisecond
			if time.Since(began) > 5*time.Second { // a newcomer needs a moment to get the log
				wait = time.Second
				n.log.Warn("the cell does not know this peer yet", "error", err)
			}
			if !pause(ctx, wait) {
				return nil
			}
			continue
		}
		select {
		case <-n.renewed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) enrolOnce(ctx context.Context, p pcm.Passport) error {
	known := false
	n.cell.View(func() {
		m, ok := n.state.Member(n.self)
		known = ok && m.NotAfter >= p.NotAfter
	})
	if !known {
		if n.cell.LogTime() == 0 {
			return pcm.Errorf(pcm.Unavailable, "nothing is known of the cell yet")
		}
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := n.must(try, pcm.Op{Enroll: &pcm.Enroll{Passport: n.mesh.Signed()}}); err != nil {
			return err
		}
	}
	// What this peer was before is known only when its copy of the ledger is current.
	try, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := n.cell.Sync(try); err != nil {
		return err
	}
	n.enrolled.Do(func() { close(n.member) })
	return nil
}

// eligible tells whether a peer may become a voter. A label on its passport says no.
func (n *Node) eligible(peer pcm.PeerID) bool {
	ok := false
	n.cell.View(func() {
		m, known := n.state.Member(peer)
		ok = known && m.Labels["voter"] != "no"
	})
	return ok
}

// owner is the account of a peer: a cell's voters are spread over accounts.
func (n *Node) owner(peer pcm.PeerID) string {
	owner := string(peer)
	n.cell.View(func() {
		if m, known := n.state.Member(peer); known {
			owner = string(m.Account)
		}
	})
	return owner
}

// site is where a peer stands by its own word; "" if it doesn't say.
func (n *Node) site(peer pcm.PeerID) (site string) {
	n.cell.View(func() {
		if m, known := n.state.Member(peer); known {
			site = m.Labels["site"]
		}
	})
	return site
}
