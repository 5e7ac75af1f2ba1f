package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
)

// Sizes and bounds of an artifact.
const (
	ChunkSize     = 1 << 20        // bytes of every chunk but a file's last
	MaxManifest   = pcm.MaxMessage // bytes of an encoded tree
	MaxEntries    = 65536          // in a tree
	inlineFile    = 32 << 10       // a file up to this size stands in the manifest itself …
	inlineTree    = 512 << 10      // … as long as all of them together are at most this
	directChunks  = 64             // a file with more chunks has its list in blobs of its own
	listSums      = ChunkSize / sumSize
	maxTreeBytes  = 1 << 50 // content of one tree
	maxPath       = 4096
	maxDepth      = 128
	maxLinkTarget = 1024
	treeVersion   = 1
)

const sumSize = sha256.Size

// sum is the SHA-256 of a blob.
type sum [sumSize]byte

func (s sum) String() string     { return hex.EncodeToString(s[:]) }
func (s sum) digest() pcm.Digest { return pcm.Digest(s.String()) }

func sumOf(d pcm.Digest) (s sum, err error) {
	if !d.Valid() {
		return s, pcm.Errorf(pcm.Invalid, "%.80q is not the digest of an artifact (64 hex digits)", string(d))
	}
	hex.Decode(s[:], []byte(d)) // its form was checked
	return s, nil
}

// Kind is what an entry of a tree is.
type Kind uint8

// The kinds.
const (
	File Kind = iota + 1
	Dir
	Link
)

func (k Kind) String() string {
	switch k {
	case File:
		return "file"
	case Dir:
		return "dir"
	case Link:
		return "link"
	}
	return "unknown"
}

// Entry is one file, folder or symbolic link of a tree. A file's content is
// inline, or in chunks whose SHA-256 sums stand here or, of a large file, in
// list blobs. All but a file's last chunk have ChunkSize bytes.
type Entry struct {
	Path   string `cbor:"1,keyasint"` // slash-separated, relative; "." for the file of a single-file tree
	Kind   Kind   `cbor:"2,keyasint"`
	Exec   bool   `cbor:"3,keyasint,omitempty"` // mode 0755 instead of 0644
	Size   int64  `cbor:"4,keyasint,omitempty"` // bytes of a file
	Inline []byte `cbor:"5,keyasint,omitempty"`
	Chunks []byte `cbor:"6,keyasint,omitempty"` // sums, one after another
	Lists  []byte `cbor:"7,keyasint,omitempty"` // sums of blobs that hold sums of chunks
	Target string `cbor:"8,keyasint,omitempty"` // of a link
}

// Mode is the entry's permission bits: 0644 or 0755.
func (e Entry) Mode() fs.FileMode {
	if e.Exec || e.Kind == Dir {
		return 0o755
	}
	return 0o644
}

// chunks is how many chunks the file has.
func (e Entry) chunks() int64 {
	if e.Kind != File || len(e.Inline) > 0 {
		return 0
	}
	return (e.Size + ChunkSize - 1) / ChunkSize
}

// chunkLen is the length of the file's i-th chunk.
func (e Entry) chunkLen(i int64) int { return int(min(ChunkSize, e.Size-i*ChunkSize)) }

// Tree is the manifest of an artifact. Its deterministic encoding's SHA-256 is
// the artifact's digest.
type Tree struct {
	Version int     `cbor:"1,keyasint"`
	Single  bool    `cbor:"2,keyasint,omitempty"` // one file, whose name is for the user of the tree to choose
	Entries []Entry `cbor:"3,keyasint"`           // sorted by path, bytewise; every folder is listed
}

// Empty is the digest of the tree without entries.
var Empty = pcm.DigestOf(pcm.MustMarshal(Tree{Version: treeVersion, Entries: []Entry{}}))

// Size is the content of all files together, in bytes.
func (t Tree) Size() pcm.Bytes {
	n := pcm.Bytes(0)
	for _, e := range t.Entries {
		n += pcm.Bytes(e.Size)
	}
	return n
}

func (t Tree) find(p string) (Entry, bool) {
	if t.Single && (p == "" || p == ".") {
		return t.Entries[0], true
	}
	p = path.Clean(p)
	for _, e := range t.Entries {
		if e.Path == p {
			return e, true
		}
	}
	return Entry{}, false
}

// encode checks the tree and encodes it.
func (t Tree) encode() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	data := pcm.MustMarshal(t)
	if len(data) > MaxManifest {
		return nil, pcm.Errorf(pcm.TooLarge, "the folder's table of contents has %s, the bound is %s (%d files or folders): pack it into one archive",
			pcm.Bytes(len(data)), pcm.Bytes(MaxManifest), len(t.Entries))
	}
	return data, nil
}

// DecodeTree decodes and checks a manifest from anywhere: whatever is accepted
// stays inside the folder where it is laid out, and needs no more space than Size says.
func DecodeTree(data []byte) (Tree, error) {
	var t Tree
	if len(data) > MaxManifest {
		return t, pcm.Errorf(pcm.TooLarge, "manifest of %d bytes is over the bound of %d", len(data), MaxManifest)
	}
	if err := pcm.Unmarshal(data, &t); err != nil {
		return Tree{}, err
	}
	if err := t.check(); err != nil {
		return Tree{}, err
	}
	if string(pcm.MustMarshal(t)) != string(data) {
		return Tree{}, pcm.Errorf(pcm.Invalid, "manifest is not in its one deterministic encoding")
	}
	return t, nil
}

func (t Tree) check() error {
	if t.Version != treeVersion {
		return pcm.Errorf(pcm.Invalid, "manifest has version %d, this release reads %d: upgrade the older side", t.Version, treeVersion)
	}
	if t.Entries == nil {
		return pcm.Errorf(pcm.Invalid, "manifest has no list of entries")
	}
	if len(t.Entries) > MaxEntries {
		return pcm.Errorf(pcm.TooLarge, "%d files and folders are too many: at most %d; pack them into one archive", len(t.Entries), MaxEntries)
	}
	if t.Single {
		if len(t.Entries) != 1 || t.Entries[0].Path != "." || t.Entries[0].Kind != File {
			return pcm.Errorf(pcm.Invalid, "manifest of a single file has something else in it")
		}
		return t.Entries[0].check()
	}
	kinds := make(map[string]Kind, len(t.Entries))
	total, last := int64(0), ""
	for _, e := range t.Entries {
		if err := checkPath(e.Path); err != nil {
			return err
		}
		if e.Path <= last { // sorted and distinct; "" is no path
			return pcm.Errorf(pcm.Invalid, "manifest lists %.200q twice or out of order", e.Path)
		}
		last = e.Path
		if up := path.Dir(e.Path); up != "." && kinds[up] != Dir {
			return pcm.Errorf(pcm.Invalid, "manifest lists %.200q, but not its folder", e.Path)
		}
		if err := e.check(); err != nil {
			return err
		}
		kinds[e.Path] = e.Kind
		if total += e.Size; total > maxTreeBytes {
			return pcm.Errorf(pcm.TooLarge, "content of more than %s is over the bound of one artifact", pcm.Bytes(maxTreeBytes))
		}
	}
	for _, e := range t.Entries {
		if e.Kind == Link {
			if err := checkLink(e.Path, e.Target, func(p string) Kind { return kinds[p] }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e Entry) check() error {
	bad := func(why string) error { return pcm.Errorf(pcm.Invalid, "manifest entry %.200q %s", e.Path, why) }
	if e.Size < 0 || e.Size > maxTreeBytes {
		return bad("has a size out of range")
	}
	switch e.Kind {
	case Dir, Link:
		if e.Exec || e.Size != 0 || len(e.Inline)+len(e.Chunks)+len(e.Lists) > 0 || (e.Target == "") == (e.Kind == Link) {
			return bad("has fields that a " + e.Kind.String() + " can't have")
		}
		return nil
	case File:
	default:
		return bad("is neither file, folder nor link")
	}
	chunks := (e.Size + ChunkSize - 1) / ChunkSize
	var want [3]int64 // lengths of Inline, Chunks, Lists
	switch {
	case len(e.Inline) > 0:
		want[0] = e.Size
	case chunks <= directChunks:
		want[1] = chunks * sumSize
	default:
		want[2] = (chunks + listSums - 1) / listSums * sumSize
	}
	if e.Target != "" || len(e.Inline) > inlineFile ||
		int64(len(e.Inline)) != want[0] || int64(len(e.Chunks)) != want[1] || int64(len(e.Lists)) != want[2] {
		return bad("has content that doesn't fit its size")
	}
	return nil
}

func checkPath(p string) error {
	if len(p) > maxPath || strings.Count(p, "/") >= maxDepth {
		return pcm.Errorf(pcm.Invalid, "path %.100q… is too long or too deep: at most %d bytes, %d folders", p, maxPath, maxDepth)
	}
	if !fs.ValidPath(p) || p == "." || strings.ContainsRune(p, 0) {
		return pcm.Errorf(pcm.Invalid, "path %.200q is not a plain relative UTF-8 path", p)
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > 255 {
			return pcm.Errorf(pcm.Invalid, "path %.100q… has a name of more than 255 bytes", p)
		}
	}
	return nil
}

// checkLink walks a link's target through the tree: it may not leave it, nor
// pass through another link (whose meaning the walk couldn't know).
func checkLink(at, target string, kind func(string) Kind) error {
	if len(target) > maxLinkTarget || !utf8.ValidString(target) || strings.ContainsRune(target, 0) || path.IsAbs(target) {
		return pcm.Errorf(pcm.Invalid, "link %.200q to %.200q is absolute, too long or not text: only links inside the folder can travel", at, target)
	}
	cur := path.Dir(at)
	parts := strings.Split(target, "/")
	for i, part := range parts {
		switch part {
		case "", ".":
			continue
		case "..":
			if cur == "." {
				return pcm.Errorf(pcm.Invalid, "link %.200q leads out of its folder, to %.200q: copy what it points to into the folder, or leave the link out", at, target)
			}
			cur = path.Dir(cur)
		default:
			cur = path.Join(cur, part)
			if kind(cur) == Link && i < len(parts)-1 {
				return pcm.Errorf(pcm.Invalid, "link %.200q to %.200q passes through another link: let it point to the place itself", at, target)
			}
		}
	}
	return nil
}
