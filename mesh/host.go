package mesh

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"
)

// baseHost is the ungated libp2p host with the parts of it that need closing or care.
type baseHost struct {
	*basichost.BasicHost
	swarm *swarm.Swarm
	quic  *quicreuse.ConnManager
}

// newHost builds a host by hand: libp2p.New links WebRTC, WebTransport and a
// dependency injector, 6 MB of binary that no peer uses. There is no relay,
// no AutoNAT, no ping service and no metrics in it.
func newHost(key pcm.Key, announce []ma.Multiaddr, portMap bool) (*baseHost, error) {
	priv := key.LibP2P()
	self, err := peer.IDFromPrivateKey(priv)
	if err != nil {
		return nil, err
	}
	peers, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(peers.AddPrivKey(self, priv), peers.AddPubKey(self, priv.GetPublic())); err != nil {
		return nil, err
	}
	resources, err := newResourceManager()
	if err != nil {
		return nil, err
	}
	bus := eventbus.NewBus()
	sw, err := swarm.NewSwarm(self, peers, bus,
		swarm.WithResourceManager(resources),
		swarm.WithDialRanker(rankTCPFirst),
		swarm.WithDialTimeout(10*time.Second))
	if err != nil {
		return nil, err
	}
	reuse, err := addTransports(sw, self, priv, resources)
	if err != nil {
		sw.Close()
		return nil, err
	}
	h := &baseHost{swarm: sw, quic: reuse}
	conns, err := connmgr.NewConnManager(connsLow, connsHigh, connmgr.WithGracePeriod(time.Minute))
	if err != nil {
		h.closeSwarm()
		return nil, err
	}
	opts := &basichost.HostOpts{
		EventBus:        bus,
		ConnManager:     conns,
		UserAgent:       "pcm",
		ProtocolVersion: fmt.Sprintf("pcm/%d", Version),
		AddrsFactory: func(addrs []ma.Multiaddr) []ma.Multiaddr {
			if len(announce) > 0 {
				return announce
			}
			return dialable(addrs)
		},
	}
	if portMap {
		opts.NATManager = basichost.NewNATManager
	}
	h.BasicHost, err = basichost.NewHost(sw, opts)
	if err != nil {
		conns.Close()
		h.closeSwarm()
		return nil, err
	}
	h.BasicHost.Start()
	return h, nil
}

// listen opens every address or fails. When it returns, Addrs knows them.
func (h *baseHost) listen(ctx context.Context, addrs []ma.Multiaddr) error {
	if len(addrs) == 0 {
		return nil
	}
	updates, err := h.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return err
	}
	defer updates.Close()
	for _, a := range addrs {
		if err := h.swarm.AddListenAddr(a); err != nil {
			return listenError(a, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for len(h.AllAddrs()) < len(addrs) {
		select {
		case <-updates.Out():
		case <-ctx.Done():
			return nil // e.g. a machine without an address but link-local ones
		}
	}
	return nil
}

func (h *baseHost) closeSwarm() { h.swarm.Close(); h.quic.Close() }

func (h *baseHost) Close() error {
	err := h.BasicHost.Close()
	return errors.Join(err, h.quic.Close())
}

func addTransports(sw *swarm.Swarm, self peer.ID, priv crypto.PrivKey, resources network.ResourceManager) (*quicreuse.ConnManager, error) {
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	tls, err := libp2ptls.New(libp2ptls.ID, priv, muxers)
	if err != nil {
		return nil, err
	}
	noise, err := noise.New(noise.ID, priv, muxers)
	if err != nil {
		return nil, err
	}
	up, err := upgrader.New([]sec.SecureTransport{tls, noise}, muxers, nil, resources, nil)
	if err != nil {
		return nil, err
	}
	// Without SO_REUSEPORT a port that another process holds is an error, not half of its connections.
	overTCP, err := tcp.NewTCPTransport(up, resources, nil, tcp.DisableReuseport())
	if err != nil {
		return nil, err
	}
	raw, err := priv.Raw()
	if err != nil {
		return nil, err
	}
	reuse, err := quicreuse.NewConnManager(
		quic.StatelessResetKey(derive(raw, "pcm quic stateless reset key")),
		quic.TokenGeneratorKey(derive(raw, "pcm quic token generator key")))
	if err != nil {
		return nil, err
	}
	overQUIC, err := libp2pquic.NewTransport(priv, reuse, nil, nil, resources)
	if err == nil {
		err = errors.Join(sw.AddTransport(overTCP), sw.AddTransport(overQUIC))
	}
	if err != nil {
		reuse.Close()
		return nil, err
	}
	return reuse, nil
}

func derive(secret []byte, purpose string) [32]byte {
	key, err := hkdf.Key(sha256.New, secret, nil, purpose, 32)
	if err != nil {
		panic(err) // only for lengths over 8,160 bytes
	}
	return [32]byte(key)
}

// newResourceManager bounds connections, streams and memory of the whole host
// and of each peer. The figures suit a mesh of connsHigh connections with
// consensus, gossip and data on them; a peer can't take more than a quarter.
func newResourceManager() (network.ResourceManager, error) {
	all := rcmgr.ResourceLimits{
		Streams: 16384, StreamsInbound: 8192, StreamsOutbound: 16384,
		Conns: 512, ConnsInbound: 256, ConnsOutbound: 384, FD: 512, Memory: 256 << 20,
	}
	transient := rcmgr.ResourceLimits{
		Streams: 1024, StreamsInbound: 512, StreamsOutbound: 1024,
		Conns: 128, ConnsInbound: 64, ConnsOutbound: 128, FD: 128, Memory: 32 << 20,
	}
	each := rcmgr.ResourceLimits{
		Streams: 4096, StreamsInbound: 2048, StreamsOutbound: 4096,
		Conns: 8, ConnsInbound: 8, ConnsOutbound: 8, FD: 8, Memory: 64 << 20,
	}
	limits := rcmgr.PartialLimitConfig{
		System: all, Transient: transient, PeerDefault: each,
		ProtocolDefault: all, ProtocolPeerDefault: each, ServiceDefault: all, ServicePeerDefault: each,
	}.Build(rcmgr.DefaultLimits.AutoScale())
	// A site often shows one address for many peers, so the bounds by address are loose.
	perIP4 := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 64}}
	perIP6 := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: 64}}
	loopback := []rate.PrefixLimit{
		{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
		{Prefix: netip.MustParsePrefix("::1/128")},
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(perIP4, perIP6),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: loopback,
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: 4, Burst: 64}}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: rate.Limit{RPS: 4, Burst: 64}}},
				GracePeriod:      time.Minute,
			},
		}))
}

// rankTCPFirst dials all TCP addresses at once and QUIC a moment later, when
// TCP is slow or blocked.
func rankTCPFirst(addrs []ma.Multiaddr) []network.AddrDelay {
	ranked := make([]network.AddrDelay, 0, len(addrs))
	tcpThere := slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return transportOf(a) == "tcp" })
	for _, a := range addrs {
		d := network.AddrDelay{Addr: a}
		if transportOf(a) != "tcp" && tcpThere {
			d.Delay = 300 * time.Millisecond
		}
		ranked = append(ranked, d)
	}
	slices.SortStableFunc(ranked, func(a, b network.AddrDelay) int { return int(a.Delay - b.Delay) })
	return ranked
}

// transportOf is "quic", "tcp" or "".
func transportOf(a ma.Multiaddr) string {
	for _, c := range a {
		switch c.Protocol().Code {
		case ma.P_QUIC_V1:
			return "quic"
		case ma.P_TCP:
			return "tcp"
		}
	}
	return ""
}

// dialable drops link-local addresses and, unless there is nothing else, loopback.
func dialable(addrs []ma.Multiaddr) []ma.Multiaddr {
	var far, loop []ma.Multiaddr
	for _, a := range addrs {
		switch {
		case manet.IsIPLoopback(a):
			loop = append(loop, a)
		case manet.IsIP6LinkLocal(a) || manet.IsIPUnspecified(a):
		default:
			far = append(far, a)
		}
	}
	if len(far) > 0 {
		return far
	}
	return loop
}

// CheckListen tries to listen on the given multiaddrs, and stops again. The error
// is that of New.
func CheckListen(addrs []string) error {
	for _, text := range addrs {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "%q is not a multiaddr: %w", text, err)
		}
		if udp, _ := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_QUIC_V1 }); len(udp) < len(a) {
			c, err := manet.ListenPacket(udp)
			if err != nil {
				return listenError(a, err)
			}
			c.Close()
			continue
		}
		l, err := manet.Listen(a)
		if err != nil {
			return listenError(a, err)
		}
		l.Close()
	}
	return nil
}

func listenError(a ma.Multiaddr, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "address already in use") {
		return pcm.Errorf(pcm.Conflict, "can't listen on %s: another process has this port; stop it or choose other addresses with --listen", a)
	}
	return pcm.Errorf(pcm.Invalid, "can't listen on %s: %w; choose other addresses with --listen", a, err)
}

// parseAddrs reads multiaddrs of one setting.
func parseAddrs(setting string, addrs []string) ([]ma.Multiaddr, error) {
	var out []ma.Multiaddr
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "%s: %q is not a multiaddr such as /ip4/0.0.0.0/tcp/4001: %w", setting, s, err)
		}
		if setting != "bootstrap" && transportOf(a) == "" {
			return nil, pcm.Errorf(pcm.Invalid, "%s: %s is neither TCP nor QUIC: use /ip4/…/tcp/PORT or /ip4/…/udp/PORT/quic-v1", setting, s)
		}
		out = append(out, a)
	}
	return out, nil
}
