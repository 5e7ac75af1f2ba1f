package artifact

import (
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
)

// hostile manifests: each breaks one rule.
func hostile() map[string]Tree {
	file := func(p string) Entry { return Entry{Path: p, Kind: File, Size: 1, Inline: []byte("x")} }
	tree := func(es ...Entry) Tree { return Tree{Version: treeVersion, Entries: es} }
	one := make([]byte, sumSize)
	return map[string]Tree{
		"climbs out":               tree(file("../x")),
		"climbs out inside":        tree(Entry{Path: "a", Kind: Dir}, file("a/../../x")),
		"absolute":                 tree(file("/etc/passwd")),
		"the folder itself":        tree(file(".")),
		"empty path":               tree(file("")),
		"double slash":             tree(Entry{Path: "a", Kind: Dir}, file("a//b")),
		"NUL":                      tree(file("a\x00b")),
		"twice":                    tree(file("a"), file("a")),
		"out of order":             tree(file("b"), file("a")),
		"file as a folder":         tree(file("a"), file("a/b")),
		"link as a folder":         tree(Entry{Path: "a", Kind: Link, Target: "."}, file("a/b")),
		"folder not listed":        tree(file("a/b")),
		"negative size":            tree(Entry{Path: "a", Kind: File, Size: -1}),
		"huge size":                tree(Entry{Path: "a", Kind: File, Size: 1 << 60}),
		"sizes that overflow":      tree(Entry{Path: "a", Kind: File, Size: 1 << 50, Lists: make([]byte, 1<<15*sumSize)}, Entry{Path: "b", Kind: File, Size: 1 << 50, Lists: make([]byte, 1<<15*sumSize)}),
		"inline of another size":   tree(Entry{Path: "a", Kind: File, Size: 2, Inline: []byte("x")}),
		"inline and chunks":        tree(Entry{Path: "a", Kind: File, Size: 1, Inline: []byte("x"), Chunks: one}),
		"too much inline":          tree(Entry{Path: "a", Kind: File, Size: inlineFile + 1, Inline: make([]byte, inlineFile+1)}),
		"too few chunks":           tree(Entry{Path: "a", Kind: File, Size: ChunkSize + 1, Chunks: one}),
		"half a sum":               tree(Entry{Path: "a", Kind: File, Size: 1, Chunks: one[:5]}),
		"list of a small file":     tree(Entry{Path: "a", Kind: File, Size: 1, Lists: one}),
		"unknown kind":             tree(Entry{Path: "a", Kind: 9}),
		"folder with content":      tree(Entry{Path: "a", Kind: Dir, Size: 1, Inline: []byte("x")}),
		"file with a target":       tree(Entry{Path: "a", Kind: File, Target: "b"}),
		"link without target":      tree(Entry{Path: "a", Kind: Link}),
		"link out":                 tree(Entry{Path: "a", Kind: Link, Target: "../b"}),
		"link out by way of":       tree(Entry{Path: "a", Kind: Link, Target: "b/../../c"}),
		"absolute link":            tree(Entry{Path: "a", Kind: Link, Target: "/etc"}),
		"link through a link":      tree(Entry{Path: "a", Kind: Dir}, Entry{Path: "a/up", Kind: Link, Target: ".."}, Entry{Path: "b", Kind: Link, Target: "a/up/.."}),
		"another version":          {Version: 2, Entries: []Entry{}},
		"no list of entries":       {Version: treeVersion},
		"single with a name":       {Version: treeVersion, Single: true, Entries: []Entry{file("a")}},
		"single folder":            {Version: treeVersion, Single: true, Entries: []Entry{{Path: ".", Kind: Dir}}},
		"single with two":          {Version: treeVersion, Single: true, Entries: []Entry{file("."), file("a")}},
		"single with nothing":      {Version: treeVersion, Single: true, Entries: []Entry{}},
		"too deep":                 tree(file(strings.Repeat("a/", maxDepth) + "a")),
		"name too long":            tree(file(strings.Repeat("a", 256))),
		"more entries than bounds": {Version: treeVersion, Entries: make([]Entry, MaxEntries+1)},
	}
}

func TestHostileManifests(t *testing.T) {
	for name, tree := range hostile() {
		t.Run(name, func(t *testing.T) {
			data, err := pcm.Marshal(tree)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeTree(data); pcm.ErrorCode(err) != pcm.Invalid && pcm.ErrorCode(err) != pcm.TooLarge {
				t.Errorf("decoding: %v", err)
			}
		})
	}
	good := pcm.MustMarshal(Tree{Version: treeVersion, Entries: []Entry{}})
	for name, data := range map[string][]byte{
		"trailing bytes":    append(append([]byte{}, good...), 0),
		"keys out of order": {0xa2, 0x03, 0x80, 0x01, 0x01},
		"long integer":      {0xa2, 0x01, 0x18, 0x01, 0x03, 0x80},
		"needless field":    {0xa3, 0x01, 0x01, 0x02, 0xf4, 0x03, 0x80},
		"empty":             {},
		"cut short":         good[:len(good)-1],
		"over its bound":    make([]byte, MaxManifest+1),
	} {
		if _, err := DecodeTree(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Whatever decodes stays inside and encodes to the same bytes.
func FuzzDecodeTree(f *testing.F) {
	f.Add(pcm.MustMarshal(Tree{Version: treeVersion, Entries: []Entry{{Path: "a", Kind: Dir}, {Path: "a/b", Kind: Link, Target: "../c"}, {Path: "c", Kind: File, Size: 1, Inline: []byte("x")}}}))
	f.Add(pcm.MustMarshal(Tree{Version: treeVersion, Single: true, Entries: []Entry{{Path: ".", Kind: File, Size: ChunkSize, Chunks: make([]byte, sumSize)}}}))
	for _, tree := range hostile() {
		if data := pcm.MustMarshal(tree); len(data) < 10_000 {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := DecodeTree(data)
		if err != nil {
			return
		}
		if string(pcm.MustMarshal(tree)) != string(data) {
			t.Fatal("two encodings of one tree")
		}
		for _, e := range tree.Entries {
			if strings.HasPrefix(e.Path, "/") || strings.Contains("/"+e.Path+"/", "/../") || e.Size < 0 {
				t.Fatalf("accepted %+v", e)
			}
			for i := range min(e.chunks(), 10) {
				if n := e.chunkLen(i); n < 1 || n > ChunkSize {
					t.Fatalf("chunk of %d bytes", n)
				}
			}
		}
		if tree.Size() < 0 {
			t.Fatal("negative size")
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(pcm.MustMarshal(request{Items: []item{{Root: make([]byte, sumSize), Tree: true, Blobs: make([]byte, 2*sumSize)}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := decodeRequest(data)
		if err == nil && (req.wanted() < 1 || req.wanted() > maxWanted) {
			t.Fatalf("accepted a request for %d blobs", req.wanted())
		}
	})
}
