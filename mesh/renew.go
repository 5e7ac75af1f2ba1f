package mesh

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// A passport is renewed at half of its time, by its issuer or any other, over
// ProtoRenew; the root's holder renews its own. What fails is tried again.

const renewRetry = time.Minute

// serveRenew issues a fresh passport to a peer that shows a valid one.
func (m *Mesh) serveRenew(_ context.Context, from pcm.Passport, req []byte) ([]byte, error) {
	if len(req) > 0 {
		return nil, pcm.Errorf(pcm.Invalid, "a renewal has no parameters")
	}
	own, signed := m.Own(), m.Signed()
	if !own.Has(pcm.RoleIssuer) {
		return nil, pcm.Errorf(pcm.Forbidden, "peer %s is no issuer: ask the peer that issued your passport", pcm.Short(own.Peer))
	}
	fresh, err := pcm.IssuePassport(m.cfg.Key, m.cfg.Root, signed, from, m.cfg.Now())
	if err != nil {
		return nil, err
	}
	return pcm.Marshal(fresh)
}

// renewAt is when the own passport should be renewed.
func renewAt(p pcm.Passport) time.Time { return time.UnixMilli(p.IssuedAt/2 + p.NotAfter/2) }

// renew gets this peer a fresh passport if it is time. It returns when to look again.
func (m *Mesh) renew(ctx context.Context) time.Duration {
	own := m.Own()
	if wait := renewAt(own).Sub(m.cfg.Now()); wait > 0 {
		return min(wait, time.Hour) // the wall clock may jump
	}
	fresh, err := m.freshPassport(ctx, own)
	if err == nil {
		err = m.adopt(fresh, own)
	}
	if err != nil {
		left := time.UnixMilli(own.NotAfter).Sub(m.cfg.Now())
		m.log.Warn("passport not renewed", "reason", err, "valid_for", left.Round(time.Second))
		return min(max(left/8, renewRetry), time.Hour)
	}
	return 0
}

func (m *Mesh) freshPassport(ctx context.Context, own pcm.Passport) (pcm.Signed, error) {
	if m.cfg.SelfIssue != nil && own.Issuer == nil {
		return m.cfg.SelfIssue()
	}
	issuers := m.issuers(own)
	if len(issuers) == 0 {
		return pcm.Signed{}, pcm.Errorf(pcm.Unavailable, "no issuer is connected")
	}
	var last error
	for _, p := range issuers {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		resp, err := m.Call(ctx, p, ProtoRenew, nil)
		cancel()
		if err == nil {
			var s pcm.Signed
			if err = pcm.Unmarshal(resp, &s); err == nil {
				return s, nil
			}
		}
		last = err
	}
	return pcm.Signed{}, last
}

// issuers are the connected peers that may issue, the one that issued this peer's passport first.
func (m *Mesh) issuers(own pcm.Passport) []pcm.PeerID {
	var out []pcm.PeerID
	var mine pcm.Passport
	if own.Issuer != nil {
		_ = pcm.Unmarshal(own.Issuer.Payload, &mine) // checked when the passport was
	}
	for _, p := range m.connected() {
		if pass, err := m.admitted(p); err == nil && pass.Has(pcm.RoleIssuer) {
			if pass.Peer == mine.Peer {
				out = slices.Insert(out, 0, pass.Peer)
			} else {
				out = append(out, pass.Peer)
			}
		}
	}
	return out[:min(len(out), 5)]
}

// adopt makes a fresh passport this peer's own and shows it to everyone connected.
func (m *Mesh) adopt(fresh pcm.Signed, old pcm.Passport) error {
	p, err := pcm.OpenPassport(fresh, m.cfg.Root, m.cfg.Now())
	if err != nil {
		return err
	}
	if p.Peer != old.Peer || p.Account != old.Account || !bytes.Equal(p.AccountBy, old.AccountBy) || !slices.Equal(p.Roles, old.Roles) {
		return pcm.Errorf(pcm.Invalid, "the fresh passport names another peer, account or roles")
	}
	if p.NotAfter <= old.NotAfter {
		return pcm.Errorf(pcm.Unavailable, "the issuer's own passport ends at %s as well: it must be renewed first", time.UnixMilli(p.NotAfter).UTC().Format(time.RFC3339))
	}
	m.setPassport(fresh, p)
	if m.cfg.OnPassport != nil {
		m.cfg.OnPassport(fresh)
	}
	m.log.Info("passport renewed", "valid_until", time.UnixMilli(p.NotAfter).UTC())
	return nil
}

// setPassport replaces this peer's own passport, which the caller has checked,
// and shows it to every connected peer.
func (m *Mesh) setPassport(s pcm.Signed, p pcm.Passport) {
	m.mu.Lock()
	m.ownSigned, m.own = s, p
	var again []*session
	for _, sess := range m.sessions {
		if sess.open {
			sess.greeting++
			again = append(again, sess)
		}
	}
	m.mu.Unlock()
	for _, sess := range again {
		m.spawn(func() { m.greet(sess) })
	}
}
