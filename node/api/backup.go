package api

import (
	"context"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/jointcloud/pcm"
)

// Snapshot says what a snapshot file of a cell holds.
type Snapshot struct {
	ID         pcm.CellID   `json:"id"`
	Name       string       `json:"name"`
	Mesh       pcm.MeshID   `json:"mesh"`
	Peer       pcm.PeerID   `json:"peer"` // that wrote it
	At         time.Time    `json:"at"`   // by that peer's clock
	LogTime    time.Time    `json:"log_time"`
	Index      uint64       `json:"index"` // last entry of the log in it
	Term       uint64       `json:"term"`
	Records    uint64       `json:"records"`
	Root       string       `json:"root"` // hex Merkle root over the records
	StateBytes int          `json:"state_bytes"`
	Removed    uint64       `json:"removed,omitempty"` // records, from the first one on, of which it has only the hashes
	Voters     []pcm.PeerID `json:"voters"`
	Members    int          `json:"members"`
	Jobs       int          `json:"jobs"`   // open
	Trades     int          `json:"trades"` // open
	Balances   int          `json:"balances"`
}

// RootKey says where a peer is with the root key of its mesh.
type RootKey struct {
	ID       pcm.MeshID `json:"id"`
	Here     bool       `json:"here"`     // in the data folder
	Founded  bool       `json:"founded"`  // this peer founded its cell
	Passport time.Time  `json:"passport"` // until when this peer's is valid
}

func (s *Server) backupRoutes() {
	streamRoute(s, "/v1/cell/snapshot", "save-cell", "A snapshot file of the cell: its state at one entry, and the history up to it", "application/octet-stream", true,
		func(ctx context.Context, _ *none, w io.Writer) error { return s.node.SaveCell(ctx, w) })
	type backup struct {
		Root bool `query:"root_key" doc:"Whether the mesh's root key is to be in it, where this peer has it."`
	}
	streamRoute(s, "/v1/backup", "backup", "A backup of the peer, with its keys: who has it is this peer", "application/gzip", true,
		func(ctx context.Context, in *backup, w io.Writer) error { return s.node.Backup(ctx, in.Root, w) })
}

// SaveCell opens a snapshot file of the node's cell. A stream that breaks ends in a
// *pcm.Error, never in io.EOF.
func (c *Client) SaveCell(ctx context.Context) (io.ReadCloser, error) {
	return c.stream(ctx, "/v1/cell/snapshot", nil)
}

// Backup opens a backup of the node's peer, as [Client.SaveCell] does.
func (c *Client) Backup(ctx context.Context, root bool) (io.ReadCloser, error) {
	return c.stream(ctx, "/v1/backup", url.Values{"root_key": {strconv.FormatBool(root)}})
}
