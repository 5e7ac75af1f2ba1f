// Package tlog puts a cell's records into the public formats of transparency
// logs, and checks logs of others in them: tiles and entry bundles
// (https://c2sp.org/tlog-tiles), checkpoints (https://c2sp.org/tlog-checkpoint)
// as signed notes (https://c2sp.org/signed-note) and offline proofs
// (https://c2sp.org/tlog-proof). It is pure: whoever uses it brings the bytes.
package tlog

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
)

// The shape of tiles.
const (
	Height   = 8           // of a tile, in levels of the tree
	Width    = 1 << Height // hashes of a full tile, entries of a full bundle
	HashSize = 32
	maxLevel = 63 / Height // a tree of 2^63 entries has no more levels of tiles
	maxIndex = 1<<(63-Height) - 1
)

// Bounds of what is read from a log.
const (
	MaxCheckpoint = 64 << 10                    // bytes of a signed note
	MaxTile       = Width * HashSize            // bytes
	MaxBundle     = Width * (2 + pcm.MaxRecord) // bytes
	MaxSize       = uint64(1)<<48 - 1           // entries: far above any real log, far below overflow
)

// Tile names a tile or, with Entries, a bundle of entries.
type Tile struct {
	Entries bool
	Level   int    // 0 to 7; 0 for bundles
	Index   uint64 // within the level
	Width   int    // 1 to 256; less than 256 is a partial tile
}

// Path is the tile's path below the log's prefix, e.g. "tile/0/x001/x234/067.p/5"
// or "tile/entries/000".
func (t Tile) Path() string {
	level := strconv.Itoa(t.Level)
	if t.Entries {
		level = "entries"
	}
	n := fmt.Sprintf("%03d", t.Index%1000)
	for rest := t.Index / 1000; rest > 0; rest /= 1000 {
		n = fmt.Sprintf("x%03d/%s", rest%1000, n)
	}
	if t.Width < Width {
		n += ".p/" + strconv.Itoa(t.Width)
	}
	return "tile/" + level + "/" + n
}

// ParsePath reads what Path writes, and nothing else: there is one path to each tile.
func ParsePath(path string) (Tile, error) {
	bad := pcm.Errorf(pcm.NotFound, "%.100q is not the path of a tile: tile/LEVEL/INDEX[.p/WIDTH] or tile/entries/INDEX[.p/WIDTH]", path)
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > 64 {
		return Tile{}, bad
	}
	level, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return Tile{}, bad
	}
	t := Tile{Width: Width}
	if level == "entries" {
		t.Entries = true
	} else if n, err := strconv.Atoi(level); err != nil || n < 0 || n > maxLevel {
		return Tile{}, bad
	} else {
		t.Level = n
	}
	rest, width, partial := strings.Cut(rest, ".p/")
	if partial {
		n, err := strconv.Atoi(width)
		if err != nil || n < 1 || n >= Width {
			return Tile{}, bad
		}
		t.Width = n
	}
	for part := range strings.SplitSeq(rest, "/") {
		n, err := strconv.ParseUint(strings.TrimPrefix(part, "x"), 10, 16)
		if err != nil || t.Index > maxIndex/1000 {
			return Tile{}, bad
		}
		t.Index = t.Index*1000 + n
	}
	if t.Index > maxIndex || t.Path() != path {
		return Tile{}, bad
	}
	return t, nil
}

// WidthIn is how much of a tile a log of some size has: 0 to 256.
func (t Tile) WidthIn(size uint64) int {
	n := size >> (Height * t.Level) // hashes at this level
	if n <= t.Index*Width {
		return 0
	}
	return int(min(n-t.Index*Width, Width))
}

// AppendEntry adds an entry to a bundle.
func AppendEntry(bundle, entry []byte) ([]byte, error) {
	if len(entry) > pcm.MaxRecord {
		return bundle, pcm.Errorf(pcm.TooLarge, "an entry of %d bytes is over the bound of %d", len(entry), pcm.MaxRecord)
	}
	return append(append(bundle, byte(len(entry)>>8), byte(len(entry))), entry...), nil
}

// SplitBundle reads a bundle of width entries. They share the bundle's memory.
func SplitBundle(bundle []byte, width int) ([][]byte, error) {
	entries := make([][]byte, 0, width)
	for rest := bundle; len(rest) > 0; {
		if len(rest) < 2 || len(rest)-2 < int(rest[0])<<8|int(rest[1]) {
			return nil, pcm.Errorf(pcm.Invalid, "the bundle is cut short in entry %d", len(entries))
		}
		n := 2 + (int(rest[0])<<8 | int(rest[1]))
		entries = append(entries, rest[2:n:n])
		if rest = rest[n:]; len(entries) > width {
			break
		}
	}
	if len(entries) != width {
		return nil, pcm.Errorf(pcm.Invalid, "the bundle has %d entries or more, not %d", len(entries), width)
	}
	return entries, nil
}
