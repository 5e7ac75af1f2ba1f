package mesh

import (
	"log/slog"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// The protocols of this package. The version is part of the path.
const (
	ProtoHello  protocol.ID = "/pcm/hello/1.0.0"
	ProtoJoin   protocol.ID = "/pcm/join/1.1.0"
	protoJoin10 protocol.ID = "/pcm/join/1.0.0" // of newcomers that don't say which rules of the ledger they speak
	ProtoRenew  protocol.ID = "/pcm/renew/1.0.0"
	ProtoOffers protocol.ID = "/pcm/offers/1.0.0"
	ProtoCells  protocol.ID = "/pcm/cells/1.0.0"
)

// Version is the newest version of the peer-to-peer protocols that this code
// speaks, Oldest the oldest. Two peers talk when their ranges overlap.
const (
	Version = 1
	Oldest  = 1
)

// Bounds.
const (
	helloTimeout    = 10 * time.Second // for a whole hello; also the longest wait at the gate
	strangerGrace   = 15 * time.Second // a connection without hello or join is cut after this
	joinTimeout     = 30 * time.Second
	maxHello        = 256 << 10
	maxJoin         = 64 << 10
	maxCellWish     = 80 // bytes of a newcomer's wish for a cell
	maxPending      = 64 // inbound connections without a passport
	maxGateWaiters  = 64 // streams of one peer that wait for its hello
	maxJoins        = 8  // joins served at once
	maxRoster       = 4096
	maxAddrs        = 16  // kept for each peer
	maxExchange     = 128 // peers told in one hello
	maxRevocations  = 4096
	maxBook         = 10_000
	maxAnnouncement = 16 << 10 // one gossip message
	connsLow        = 80
	connsHigh       = 100
	dialTarget      = 64 // known peers are dialled up to this many connections; bootstrap peers always
)

// Config is what a peer needs to take its place in a mesh. Key, Root, Passport
// and Logger are required.
type Config struct {
	Key       pcm.Key
	Mesh      pcm.MeshID // "" means: that of Root
	Root      []byte     // the mesh's root public key, 32 bytes
	Passport  pcm.Signed // this peer's own
	Listen    []string   // multiaddrs, e.g. /ip4/0.0.0.0/tcp/4001; none: dial only
	Announce  []string   // multiaddrs told to others instead of the listen addresses; for peers behind static NAT
	Bootstrap []string   // multiaddrs with /p2p/ at the end; re-dialled for ever
	MDNS      bool       // find peers of this mesh on the LAN
	PortMap   bool       // ask the router for a port by UPnP or NAT-PMP
	PeersFile string     // remembers peers and revocations between runs; "" remembers nothing

	// OnPassport is told this peer's renewed passport, to store it. Optional.
	OnPassport func(pcm.Signed)
	// SelfIssue renews this peer's own passport when this peer holds the root key. Optional.
	SelfIssue func() (pcm.Signed, error)

	Logger *slog.Logger
	Now    func() time.Time // wall clock; nil: time.Now
}
