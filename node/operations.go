package node

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// Permit says for whose tasks a seller allows an operation.
type Permit string

// The permits.
const (
	PermitAll Permit = "all" // every buyer's: the default
	PermitOwn Permit = "own" // those of its own account
	PermitOff Permit = "off" // nobody's
)

// Operations are what a seller allows to be done with running tasks, beyond
// running and stopping them, where its back ends can do it.
type Operations struct {
	Suspend Permit
	Exec    Permit
	Copy    Permit
	Service Permit
}

// of is the permit for a feature; "" where the operator has no say.
func (o Operations) of(f pcm.Feature) Permit {
	switch f {
	case pcm.FeatureSuspend:
		return o.Suspend
	case pcm.FeatureExec:
		return o.Exec
	case pcm.FeatureCopy:
		return o.Copy
	case pcm.FeatureService:
		return o.Service
	}
	return ""
}

// offered are the features of a pool that this peer's operator allows to anybody.
func (o Operations) offered(features []pcm.Feature) []pcm.Feature {
	return slices.DeleteFunc(slices.Clone(features), func(f pcm.Feature) bool { return o.of(f) == PermitOff })
}

// allows tells whether an operation is allowed with a buyer's tasks.
func (o Operations) allows(f pcm.Feature, own bool) error {
	switch p := o.of(f); {
	case p == PermitOff:
		return pcm.Errorf(pcm.Refused, "the operator of this peer allows no %s of tasks here", f)
	case p == PermitOwn && !own:
		return pcm.Errorf(pcm.Refused, "the operator of this peer allows %s of its own account's tasks only", f)
	}
	return nil
}

// can tells whether an operation is possible with a trade's tasks, and allowed.
func (s *seller) can(x *execution, op api.SessionOp, who asker) error {
	f := op.Feature()
	if f == "" || who.own && who.account != x.terms.Buyer { // whoever owns the machine may do it by other means
		return nil
	}
	return s.n.cfg.Operations.allows(f, x.terms.Buyer == s.n.account)
}

// lacks says that the back end of a trade can't do something, and which pools can.
func (s *seller) lacks(x *execution, f pcm.Feature) error {
	return pcm.Errorf(pcm.Refused, "pool %s of %s can't do %s; %s", x.terms.Pool, s.n.cfg.Name, f, s.n.poolsWith(f))
}

// poolsWith says which pools of the mesh have a feature.
func (n *Node) poolsWith(f pcm.Feature) string {
	const most = 5
	var have []string
	if n.mesh != nil {
		for _, row := range n.mesh.Offers() {
			for _, p := range row.Offer.Pools {
				if p.Has(f) {
					have = append(have, fmt.Sprintf("%s/%s", row.Offer.Name, p.ID))
				}
			}
		}
	}
	slices.Sort(have)
	switch {
	case len(have) == 0:
		return "no pool in the mesh can"
	case len(have) > most:
		return fmt.Sprintf("%s and %d more can", strings.Join(have[:most], ", "), len(have)-most)
	}
	return strings.Join(have, ", ") + " can"
}

// prefixed is text after a prefix; "" if there is none.
func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
