package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// Rules for accounts: who may buy here.
const (
	ruleAllow = "allow"
	ruleDeny  = "deny"
)

// accountRule is a rule for one account or peer.
type accountRule struct {
	Rule  string    `json:"rule"`
	Note  string    `json:"note,omitempty"`
	Since time.Time `json:"since"`
}

// knownForm tells whether s has the form of an account's or a peer's ID.
func knownForm(s string) bool {
	return len(pcm.AccountID(s).Public()) > 0 || len(pcm.PeerID(s).Public()) > 0
}

// deniedMark begins the reason of a veto that depends on who buys, and on nothing
// that changes by itself: buyers that see it stay away for long.
const deniedMark = "forbidden: "

// mayBuy is the seller's own rule: what is denied always wins; where something is
// allowed, only that and the own account may buy. Rules for peers are about who
// drives the job, of the account drives; to allow a peer lets nobody in for whose
// account it drives, or any account could wait for it to take its job over.
func (o *operator) mayBuy(t pcm.Terms, drives pcm.AccountID) error {
	if t.Buyer == o.n.account && t.Driver == o.n.self {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	buyer, driver := o.set.Accounts[string(t.Buyer)].Rule, o.set.Accounts[string(t.Driver)].Rule
	allowed := buyer == ruleAllow || driver == ruleAllow && drives == t.Buyer
	allows := false
	for _, r := range o.set.Accounts {
		allows = allows || r.Rule == ruleAllow
	}
	switch {
	case buyer == ruleDeny:
		return pcm.Errorf(pcm.Forbidden, "%saccount %s may not buy here", deniedMark, pcm.Short(t.Buyer))
	case driver == ruleDeny:
		return pcm.Errorf(pcm.Forbidden, "%speer %s may not buy here", deniedMark, pcm.Short(t.Driver))
	case allows && t.Buyer != o.n.account && !allowed:
		return pcm.Errorf(pcm.Forbidden, "%saccount %s is not among those that may buy here", deniedMark, pcm.Short(t.Buyer))
	}
	return nil
}

// party finds the account or peer that a person meant: an ID, the beginning of
// one, or the name of a peer.
func (n *Node) party(typed string) (string, error) {
	if knownForm(typed) {
		return typed, nil
	}
	var names, found []string
	add := func(name, id string) {
		names = append(names, name)
		if (name == typed || len(typed) >= 8 && strings.HasPrefix(name, typed)) && !slices.Contains(found, id) {
			found = append(found, id)
		}
	}
	n.cell.View(func() {
		for _, m := range n.state.Members() {
			add(m.Name, string(m.Peer))
			add(pcm.Short(m.Peer), string(m.Peer))
			add(string(m.Account), string(m.Account))
		}
	})
	for _, p := range n.mesh.Peers() { // of other cells as well
		add(p.Passport.Name, string(p.Passport.Peer))
		add(pcm.Short(p.Passport.Peer), string(p.Passport.Peer))
		add(string(p.Passport.Account), string(p.Passport.Account))
	}
	n.operator.mu.Lock()
	for who := range n.operator.set.Accounts {
		add(who, who)
	}
	n.operator.mu.Unlock()
	switch len(found) {
	case 0:
		hint := ""
		if near := pcm.Nearest(typed, names); near != "" {
			hint = "; did you mean " + near + "?"
		}
		return "", pcm.Errorf(pcm.NotFound, "%q is neither an account (acc-…), nor a peer's ID, nor the name of a peer that is known here%s; see 'pcm peers'", typed, hint)
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return "", pcm.Errorf(pcm.Invalid, "%q could be any of %d: %s; give the whole ID", typed, len(found), strings.Join(found[:min(len(found), 8)], ", "))
}

func (n *Node) ruleView(who string, r accountRule, names map[pcm.PeerID]string) api.AccountRule {
	v := api.AccountRule{ID: who, Rule: r.Rule, Note: r.Note, Since: r.Since.UTC(), Kind: "account"}
	if len(pcm.PeerID(who).Public()) > 0 {
		v.Kind, v.Name = "peer", names[pcm.PeerID(who)]
	}
	return v
}

// AccountRules lists who may buy here and who may not.
func (n *Node) AccountRules(context.Context) ([]api.AccountRule, error) {
	names := n.names()
	n.operator.mu.Lock()
	defer n.operator.mu.Unlock()
	list := []api.AccountRule{}
	for who, r := range n.operator.set.Accounts {
		list = append(list, n.ruleView(who, r, names))
	}
	slices.SortFunc(list, func(a, b api.AccountRule) int {
		if a.Rule != b.Rule {
			return -strings.Compare(a.Rule, b.Rule) // deny, which wins, comes first
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// SetAccountRule allows or denies an account or a peer. What runs already goes on.
func (n *Node) SetAccountRule(ctx context.Context, typed, rule, note string) (api.AccountRule, error) {
	if err := checkNote("note", note); err != nil {
		return api.AccountRule{}, err
	}
	who, err := n.party(typed)
	if err != nil {
		return api.AccountRule{}, err
	}
	if rule == ruleDeny && (who == string(n.account) || who == string(n.self)) {
		return api.AccountRule{}, pcm.Errorf(pcm.Invalid, "%s is this peer's own: to sell nothing, use 'pcm pool cordon'", who)
	}
	r := accountRule{Rule: rule, Note: note, Since: time.Now()}
	err = n.operator.change(func(s *operatorSettings) error {
		s.Accounts[who] = r
		return nil
	})
	if err != nil {
		return api.AccountRule{}, err
	}
	n.audit.operator(ctx, rule, api.AuditEntry{Subject: who, Reason: note})
	n.log.Info("the operator has set a rule", "who", who, "rule", rule, "by", api.Caller(ctx))
	return n.ruleView(who, r, n.names()), nil
}

// RemoveAccountRule takes a rule back.
func (n *Node) RemoveAccountRule(ctx context.Context, typed string) (api.AccountRule, error) {
	who, err := n.party(typed)
	if err != nil {
		return api.AccountRule{}, err
	}
	var was accountRule
	err = n.operator.change(func(s *operatorSettings) error {
		r, ok := s.Accounts[who]
		if !ok {
			return pcm.Errorf(pcm.NotFound, "there is no rule for %s; see 'pcm account list'", who)
		}
		was = r
		delete(s.Accounts, who)
		return nil
	})
	if err != nil {
		return api.AccountRule{}, err
	}
	n.audit.operator(ctx, "unrule", api.AuditEntry{Subject: who, Reason: "was: " + was.Rule})
	n.log.Info("the operator has taken a rule back", "who", who, "rule", was.Rule, "by", api.Caller(ctx))
	return n.ruleView(who, was, n.names()), nil
}

// deniedFor is how long a seller is not asked again that does not sell to an account.
const deniedFor = 10 * time.Minute

// maxDenials bounds how many are remembered.
const maxDenials = 4096

// denials are the sellers that refuse an account, as this peer has learned when it
// drove that account's jobs. They hold for all jobs, and all pools of the seller.
type denials struct {
	mu sync.Mutex
	by map[denial]avoidance
	at map[denial]time.Time // when each was learned, or asked about last
}

// forgiveEvery is how often a seller is asked whether it still refuses an account.
const forgiveEvery = 15 * time.Second

type denial struct {
	seller pcm.PeerID
	buyer  pcm.AccountID
}

// learn takes the reason of a veto in.
func (d *denials) learn(t pcm.Terms, reason string, now time.Time) {
	if !strings.HasPrefix(reason, deniedMark) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by == nil {
		d.by, d.at = map[denial]avoidance{}, map[denial]time.Time{}
	}
	if len(d.by) >= maxDenials {
		for k, a := range d.by {
			if now.After(a.until) {
				delete(d.by, k)
				delete(d.at, k)
			}
		}
	}
	if len(d.by) < maxDenials {
		d.by[denial{t.Seller, t.Buyer}] = avoidance{now.Add(deniedFor), reason}
		d.at[denial{t.Seller, t.Buyer}] = now
	}
}

// again tells whether it is time to ask a seller again that refuses an account, and
// notes that it is asked.
func (d *denials) again(seller pcm.PeerID, buyer pcm.AccountID, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := denial{seller, buyer}
	at, ok := d.at[k]
	if !ok || now.Sub(at) < forgiveEvery {
		return false
	}
	d.at[k] = now
	return true
}

// lift forgets that a seller refuses an account.
func (d *denials) lift(seller pcm.PeerID, buyer pcm.AccountID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.by, denial{seller, buyer})
	delete(d.at, denial{seller, buyer})
}

// of tells whether a seller refuses an account, and until when.
func (d *denials) of(seller pcm.PeerID, buyer pcm.AccountID, now time.Time) (avoidance, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := denial{seller, buyer}
	a, ok := d.by[k]
	if ok && now.After(a.until) {
		delete(d.by, k)
		delete(d.at, k)
		ok = false
	}
	return a, ok
}
