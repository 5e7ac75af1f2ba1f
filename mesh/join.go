package mesh

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// JoinRequest is what a newcomer sends: the token's two halves, and who it wants to be.
type JoinRequest struct {
	Invite     pcm.Signed    `cbor:"1,keyasint"`
	Secret     []byte        `cbor:"2,keyasint"`
	Peer       pcm.PeerID    `cbor:"3,keyasint"`
	Account    pcm.AccountID `cbor:"4,keyasint"`
	AccountSig []byte        `cbor:"5,keyasint"` // see pcm.SignJoin
	Name       string        `cbor:"6,keyasint"`
	Labels     pcm.Labels    `cbor:"7,keyasint,omitempty"`

	// Cell is where it wants to go: a cell's ID or name, or "new:NAME" to found one
	// of its own; "": wherever the issuer sends it.
	Cell string `cbor:"8,keyasint,omitempty"`

	// Level is up to which level of the ledger's rules its release speaks; 0: it is
	// of one that doesn't say.
	Level int `cbor:"9,keyasint,omitempty"`
}

// Statement is the passport that the request asks for, ready for pcm.IssuePassport.
func (r JoinRequest) Statement(mesh pcm.MeshID, roles []pcm.Role) pcm.Passport {
	return pcm.Passport{Mesh: mesh, Peer: r.Peer, Account: r.Account, AccountBy: r.AccountSig, Name: r.Name, Labels: r.Labels, Roles: roles}
}

// JoinReply is what a newcomer gets.
type JoinReply struct {
	Passport pcm.Signed `cbor:"1,keyasint"`
	Cell     pcm.CellID `cbor:"2,keyasint"`
	CellName string     `cbor:"3,keyasint"`
	Root     []byte     `cbor:"4,keyasint"`
	Peers    []string   `cbor:"5,keyasint"` // multiaddrs with /p2p/: bootstrap addresses

	// Found says that the newcomer founds a cell of its own, called CellName; Cell
	// is empty then.
	Found  bool         `cbor:"6,keyasint,omitempty"`
	Voters []pcm.PeerID `cbor:"7,keyasint,omitempty"` // of Cell
}

// joinAnswer is a JoinReply or a refusal.
type joinAnswer struct {
	Reply   *JoinReply `cbor:"1,keyasint,omitempty"`
	Refusal *pcm.Error `cbor:"2,keyasint,omitempty"`
}

// checkJoin checks the form of a request and all that the mesh alone can tell.
// The invite comes back checked, save that its secret may have been burned.
func (m *Mesh) checkJoin(r JoinRequest, from peer.ID) (pcm.Invite, error) {
	inv, err := pcm.OpenInvite(r.Invite)
	if err != nil {
		return inv, err
	}
	now := m.cfg.Now()
	switch {
	case inv.Mesh != m.cfg.Mesh:
		return inv, pcm.Errorf(pcm.Refused, "the token is for %s, this is %s: ask a peer of this mesh for a token", inv.Mesh, m.cfg.Mesh)
	case now.Add(-pcm.Skew).UnixMilli() > inv.NotAfter:
		return inv, pcm.Errorf(pcm.Refused, "the token expired at %s: ask for a new one", time.UnixMilli(inv.NotAfter).UTC().Format(time.RFC3339))
	case len(r.Secret) > 128 || pcm.DigestOf(r.Secret) != inv.Hash:
		return inv, pcm.Errorf(pcm.Unauthorized, "the token is damaged: its secret does not belong to it")
	case string(r.Peer) != from.String():
		return inv, pcm.Errorf(pcm.Unauthorized, "peer %s asks to join as %s", short(from), pcm.Short(r.Peer))
	case !pcm.Verify(r.Account.Public(), pcm.DomainJoin, pcm.MustMarshal(pcm.JoinStatement{Mesh: inv.Mesh, Peer: r.Peer}), r.AccountSig):
		return inv, pcm.Errorf(pcm.Unauthorized, "account %s has not signed for peer %s", pcm.Short(r.Account), pcm.Short(r.Peer))
	case len(r.Cell) > maxCellWish || !pcm.Printable(r.Cell):
		return inv, pcm.Errorf(pcm.Invalid, "%q names no cell: use a cell's name or ID, or new:NAME", cleanText(r.Cell, 80))
	case !pcm.ValidName(r.Name):
		return inv, pcm.Errorf(pcm.Invalid, "%q is not a name: 1 to 63 lower-case letters, digits, dots and dashes", cleanText(r.Name, 80))
	}
	if err := r.Labels.Validate(); err != nil {
		return inv, err
	}
	if err := m.bans.banned(r.Peer, false, now); err != nil {
		return inv, err
	}
	return inv, m.mayInvite(inv.Issuer)
}

// mayInvite checks that the token's signer is an issuer of this mesh.
func (m *Mesh) mayInvite(issuer pcm.PeerID) error {
	by, ok := m.Passport(issuer)
	if !ok {
		return pcm.Errorf(pcm.Unauthorized, "the token was signed by %s, who is not known here: ask for a new token, or let a peer that knows the signer serve it", pcm.Short(issuer))
	}
	if !by.Has(pcm.RoleIssuer) {
		return pcm.Errorf(pcm.Unauthorized, "the token was signed by %s, who may not invite: ask a peer with the issuer role", pcm.Short(issuer))
	}
	return m.stillValid(by)
}

// ServeJoin serves joins of strangers. Before issue is called, the request has
// been checked: form, expiry, mesh, the invite's issuer, the secret against
// its hash, the account's signature, and that from is the peer that asks. Left to
// issue: to burn the secret in the cell and to issue the passport. An error's
// message is what the newcomer sees. At most 8 joins run at once, one for each peer.
func (m *Mesh) ServeJoin(issue func(ctx context.Context, r JoinRequest, inv pcm.Invite, from pcm.PeerID) (JoinReply, error)) {
	total, each := make(chan struct{}, maxJoins), newSlots(1)
	serve := func(s network.Stream) {
		defer s.Close()
		from := s.Conn().RemotePeer()
		s.SetDeadline(time.Now().Add(joinTimeout + 5*time.Second))
		defer m.joining(from)()
		reply, err := func() (JoinReply, error) { // the places are free again when the newcomer hears
			busy := pcm.Errorf(pcm.Busy, "peer %s serves too many joins now: try again in a minute", short(m.self))
			select {
			case total <- struct{}{}:
				defer func() { <-total }()
			default:
				return JoinReply{}, busy
			}
			if !each.take(from) {
				return JoinReply{}, busy
			}
			defer each.give(from)
			return m.serveJoin(s, from, issue)
		}()
		if err != nil && pcm.ErrorCode(err) == pcm.Internal {
			s.Reset() // cut off, not refused
			return
		}
		m.answerJoin(s, reply, err)
	}
	m.base.SetStreamHandler(ProtoJoin, serve)
	m.base.SetStreamHandler(protoJoin10, serve)
}

// serveJoin reads one join, checks it and has it issued. The error has code
// Internal if the newcomer was cut off.
func (m *Mesh) serveJoin(s network.Stream, from peer.ID, issue func(context.Context, JoinRequest, pcm.Invite, pcm.PeerID) (JoinReply, error)) (JoinReply, error) {
	ctx, cancel := context.WithTimeout(m.ctx, joinTimeout)
	defer cancel()
	r, err := readJoin(s)
	if err != nil {
		return JoinReply{}, err
	}
	var reply JoinReply
	inv, err := m.checkJoin(r, from)
	if err == nil {
		if reply, err = issue(ctx, r, inv, pcm.PeerID(from.String())); pcm.ErrorCode(err) == pcm.Internal {
			err = pcm.Errorf(pcm.Unavailable, "the join could not be served: %w", err) // an answer, not a cut
		}
	}
	if err != nil {
		m.log.Warn("join refused", "peer", short(from), "reason", err)
	} else {
		m.log.Info("peer joined", "peer", short(from), "name", r.Name, "account", pcm.Short(r.Account))
	}
	return reply, err
}

// joining keeps a stranger's connection from being cut while its join is served.
func (m *Mesh) joining(p peer.ID) (done func()) {
	m.mu.Lock()
	s := m.sessionLocked(p)
	s.joining++
	m.mu.Unlock()
	return func() { m.mu.Lock(); s.joining--; m.mu.Unlock() }
}

func readJoin(s network.Stream) (JoinRequest, error) {
	frame, err := readFrame(s, maxJoin)
	if err != nil {
		return JoinRequest{}, err
	}
	return decodeJoin(frame)
}

func decodeJoin(frame []byte) (JoinRequest, error) {
	var r JoinRequest
	err := pcm.Unmarshal(frame, &r)
	return r, err
}

func (m *Mesh) answerJoin(s network.Stream, reply JoinReply, err error) {
	a := joinAnswer{Reply: &reply}
	if err != nil {
		a = joinAnswer{Refusal: asError(err)}
	}
	if writeFrame(s, pcm.MustMarshal(a)) != nil {
		s.Reset()
		return
	}
	s.CloseWrite()
}

// JoinConfig is what a newcomer brings.
type JoinConfig struct {
	Key     pcm.Key // of the peer
	Account pcm.Key
	Name    string
	Labels  pcm.Labels
	Token   string // as 'pcm invite' printed it
	Cell    string // see [JoinRequest]
	Level   int    // likewise
	Logger  *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Join takes a token to a peer of its mesh and comes back with a passport, which
// has been checked. It tries the token's addresses in turn; a refusal ends it.
// The same peer may ask again with the same token after an interrupted try.
// Errors carry the code and message of the refusing peer, or Unavailable.
func Join(ctx context.Context, cfg JoinConfig) (JoinReply, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	token, inv, err := pcm.ParseToken(cfg.Token)
	if err != nil {
		return JoinReply{}, err
	}
	if cfg.Now().Add(-pcm.Skew).UnixMilli() > inv.NotAfter {
		return JoinReply{}, pcm.Errorf(pcm.Refused, "the token expired at %s: ask for a new one (or check this machine's clock)", time.UnixMilli(inv.NotAfter).UTC().Format(time.RFC3339))
	}
	request := JoinRequest{
		Invite: token.Invite, Secret: token.Secret, Peer: cfg.Key.Peer(), Account: cfg.Account.Account(),
		AccountSig: pcm.SignJoin(cfg.Account, inv.Mesh, cfg.Key.Peer()), Name: cfg.Name, Labels: cfg.Labels, Cell: cfg.Cell, Level: cfg.Level,
	}
	targets := joinTargets(inv.Addrs)
	if len(targets) == 0 {
		return JoinReply{}, pcm.Errorf(pcm.Invalid, "the token has no address that can be dialled: the inviting peer must listen on a reachable address (--listen, --announce)")
	}
	h, err := newHost(cfg.Key, nil, false)
	if err != nil {
		return JoinReply{}, err
	}
	defer h.Close()
	var failures []error
	for _, t := range targets {
		reply, err := joinAt(ctx, h, t, request)
		if err == nil {
			return reply, checkJoined(reply, inv, request, cfg.Now())
		}
		if pcm.ErrorCode(err) != pcm.Unavailable {
			return JoinReply{}, err
		}
		cfg.Logger.Warn("join address failed", "peer", short(t.ID), "addrs", t.Addrs, "reason", err)
		failures = append(failures, err)
	}
	return JoinReply{}, pcm.Errorf(pcm.Unavailable, "no peer of the token could be reached: %w", errors.Join(failures...))
}

// joinTargets groups addresses by peer, in the token's order.
func joinTargets(addrs []string) []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		at, p := peer.SplitAddr(a)
		if p == "" || at == nil || !plain(at) {
			continue
		}
		i := slices.IndexFunc(out, func(t peer.AddrInfo) bool { return t.ID == p })
		if i < 0 {
			i = len(out)
			out = append(out, peer.AddrInfo{ID: p})
		}
		out[i].Addrs = append(out[i].Addrs, at)
	}
	return out
}

func joinAt(ctx context.Context, h *baseHost, t peer.AddrInfo, r JoinRequest) (JoinReply, error) {
	dialCtx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if t.ID == h.ID() {
		return JoinReply{}, pcm.Errorf(pcm.Conflict, "the token comes from this very peer: take it to another one")
	}
	if err := h.Connect(dialCtx, t); err != nil {
		return JoinReply{}, pcm.Errorf(pcm.Unavailable, "can't reach peer %s: %w", short(t.ID), err)
	}
	s, err := h.NewStream(network.WithNoDial(dialCtx, "connected"), t.ID, ProtoJoin, protoJoin10)
	if err != nil {
		if isUnsupported(err) {
			return JoinReply{}, pcm.Errorf(pcm.Unavailable, "peer %s does not serve joins", short(t.ID))
		}
		return JoinReply{}, pcm.Errorf(pcm.Unavailable, "can't ask peer %s: %w", short(t.ID), err)
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	s.SetDeadline(time.Now().Add(joinTimeout + 5*time.Second))
	if s.Protocol() == protoJoin10 {
		r.Level = 0 // it would not know the field
	}
	if err := writeFrame(s, pcm.MustMarshal(r)); err != nil {
		s.Reset()
		return JoinReply{}, frameError(t.ID, "join", err)
	}
	frame, err := readFrame(s, maxJoin)
	if err != nil {
		s.Reset()
		return JoinReply{}, frameError(t.ID, "join", err)
	}
	var a joinAnswer
	if err := pcm.Unmarshal(frame, &a); err != nil {
		return JoinReply{}, err
	}
	switch {
	case a.Refusal != nil:
		return JoinReply{}, cleanError(a.Refusal)
	case a.Reply == nil:
		return JoinReply{}, pcm.Errorf(pcm.Invalid, "peer %s answered neither yes nor no", short(t.ID))
	}
	return *a.Reply, nil
}

// checkJoined trusts nothing of the answer that the token does not vouch for.
func checkJoined(reply JoinReply, inv pcm.Invite, r JoinRequest, now time.Time) error {
	if !slices.Equal(reply.Root, inv.Root) {
		return pcm.Errorf(pcm.Unauthorized, "the answer names another root key than the token: do not trust the peer that gave it")
	}
	p, err := pcm.OpenPassport(reply.Passport, inv.Root, now)
	if err != nil {
		return err
	}
	if p.Peer != r.Peer || p.Account != r.Account {
		return pcm.Errorf(pcm.Unauthorized, "the passport in the answer is for peer %s of account %s", pcm.Short(p.Peer), pcm.Short(p.Account))
	}
	if reply.Found == reply.Cell.Valid() || reply.Found && reply.Cell != "" || len(reply.CellName) > 63 || !pcm.Printable(reply.CellName) || len(reply.Peers) > 256 || len(reply.Voters) > 16 {
		return pcm.Errorf(pcm.Invalid, "the answer is malformed or over its bounds")
	}
	return nil
}
