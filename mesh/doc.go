// Package mesh is one peer's place in the mesh: the libp2p host, admission by
// passport, discovery, request protocols and the book of offers.
//
// # Admission
//
// A connection proves a peer ID and nothing more. The dialer opens
// [ProtoHello]; both sides show mesh, protocol version and passport, and only
// then do the other protocols open, in both directions. A stranger reaches
// hello, join and libp2p's identify. The host that [Mesh.Host] returns holds
// that rule for everything built on it (gossip, consensus, data).
//
// # Traffic
//
// Control traffic is [Mesh.Call]: one bounded request and one bounded response
// on a stream of its own, about one round trip on a connection that stands.
// Bulk data goes through [Mesh.Stream] in chunks; a bulk protocol must hold
// itself to a few streams for each peer, because on TCP all streams of two
// peers share one connection. TCP with TLS is dialled first (three times
// QUIC's throughput on a fast link), QUIC where TCP does not answer.
//
// Nothing is contacted that was not configured, remembered, told by a member
// or found on the LAN (with Config.MDNS).
package mesh
