package tlog

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	xtlog "golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
)

const cell = pcm.CellID("cell-abcdefghijklmnop")

// naive is a log that is nothing but its entries.
type naive [][]byte

func mth(leaves [][]byte) xtlog.Hash {
	switch len(leaves) {
	case 0:
		return xtlog.Hash(EmptyRoot)
	case 1:
		return xtlog.RecordHash(leaves[0])
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	return xtlog.NodeHash(mth(leaves[:k]), mth(leaves[k:]))
}

func (l naive) head(size int) Checkpoint {
	return Checkpoint{Origin: pcm.LogOrigin(cell), Size: uint64(size), Root: mth(l[:size])}
}

func (l naive) read(_ context.Context, t Tile) (out []byte, err error) {
	if t.WidthIn(uint64(len(l))) < t.Width {
		return nil, pcm.Errorf(pcm.NotFound, "%s is beyond the log", t.Path())
	}
	span := uint64(1) << (Height * t.Level)
	for i := range uint64(t.Width) {
		at := (t.Index*Width + i) * span
		if t.Entries {
			if out, err = AppendEntry(out, l[at]); err != nil {
				return nil, err
			}
			continue
		}
		h := mth(l[at : at+span])
		out = append(out, h[:]...)
	}
	return out, nil
}

func logOf(n int) (l naive) {
	for i := range n {
		l = append(l, fmt.Appendf(nil, "entry %d", i))
	}
	return l
}

// A tree of tiles says the same as a naive one: heads, proofs, entries; and a
// byte changed anywhere in what is served is noticed.
func TestTreeAgainstNaive(t *testing.T) {
	all := logOf(70_000)
	big := mth(all[:65536])
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.IntRange(1, 1000), rapid.SampledFrom([]int{255, 256, 257, 511, 512, 513})).Draw(t, "size")
		l := all[:size]
		tree := NewTree(l.head(size), l.read)
		older := rapid.IntRange(0, size).Draw(t, "older")
		if ok, err := tree.Extends(t.Context(), l.head(older)); err != nil || !ok {
			t.Fatalf("%d entries extend %d: %v, %v", size, older, ok, err)
		}
		index := rapid.IntRange(0, size-1).Draw(t, "index")
		hashes, err := tree.Prove(t.Context(), uint64(index))
		if err != nil {
			t.Fatal(err)
		}
		p := Proof{Entry: l[index], Index: uint64(index), Hashes: hashes, Checkpoint: NewSigner(cell, pcm.NewKey()).Sign(l.head(size))}
		if _, _, err := p.Check(nil); err != nil {
			t.Fatal(err)
		}
		p.Entry = append([]byte{}, p.Entry...)
		p.Entry[rapid.IntRange(0, len(p.Entry)-1).Draw(t, "byte")] ^= 1
		if _, _, err := p.Check(nil); err == nil {
			t.Fatal("a changed entry is proven")
		}
		n := index / Width
		got, err := tree.Entries(t.Context(), uint64(n))
		if err != nil || !slices.EqualFunc(got, l[n*Width:min(size, (n+1)*Width)], bytes.Equal) {
			t.Fatalf("bundle %d: %v", n, err)
		}
		bad := NewTree(l.head(size), func(ctx context.Context, at Tile) ([]byte, error) {
			data, err := l.read(ctx, at)
			if err == nil && at.Entries == rapid.Bool().Draw(t, "in entries") {
				data[rapid.IntRange(0, len(data)-1).Draw(t, "at")] ^= 1
				return data, nil
			}
			return data, err
		})
		if got, err := bad.Entries(t.Context(), uint64(n)); err == nil && !slices.EqualFunc(got, l[n*Width:min(size, (n+1)*Width)], bytes.Equal) {
			t.Fatal("changed bytes are believed")
		}
	})
	// Three levels of tiles.
	tree := NewTree(all.head(len(all)), all.read)
	if root, err := tree.Root(t.Context(), 65536); err != nil || root != big {
		t.Errorf("root of 65536: %v", err)
	}
	other := all.head(65536)
	other.Root[0] ^= 1
	if ok, err := tree.Extends(t.Context(), other); ok || err != nil {
		t.Errorf("a log of another beginning is extended: %v, %v", ok, err)
	}
	if _, err := tree.Root(t.Context(), 70_001); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("root beyond the head: %v", err)
	}
}

func TestPaths(t *testing.T) {
	for path, want := range map[string]Tile{
		"tile/0/000":                    {Width: 256},
		"tile/3/x001/x234/067":          {Level: 3, Index: 1234067, Width: 256},
		"tile/0/x001/234.p/5":           {Index: 1234, Width: 5},
		"tile/entries/x002/000.p/255":   {Entries: true, Index: 2000, Width: 255},
		"tile/7/x001/x000/x000/000.p/1": {Level: 7, Index: 1e9, Width: 1},
	} {
		got, err := ParsePath(path)
		if err != nil || got != want || got.Path() != path {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	for _, path := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "tile/00/000", "tile/8/000", "tile/-1/000", "tile/0/0", "tile/0/0000",
		"tile/0/001/000", "tile/0/x000/001", "tile/0/x001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01",
		"tile/0/000.p/", "tile/0/000/", "tile/data/000", "tile/0/../000", "tile/0/+01", "tile/0/xx01/000",
		"tile/0/x999/x999/x999/x999/x999/x999/999",
	} {
		if got, err := ParsePath(path); pcm.ErrorCode(err) != pcm.NotFound {
			t.Errorf("%q is %+v, %v", path, got, err)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("tile/0/x001/234.p/5")
	f.Add("tile/entries/000")
	f.Fuzz(func(t *testing.T, path string) {
		if got, err := ParsePath(path); err == nil && got.Path() != path {
			t.Errorf("%q is the path of %+v, whose path is %q", path, got, got.Path())
		}
	})
}

// Our notes are those of the Go team's package, and theirs are ours.
func TestNotes(t *testing.T) {
	c := logOf(300).head(300)
	a, b, x := NewSigner(cell, pcm.NewKey()), NewSigner(cell, pcm.NewKey()), NewSigner(cell, pcm.NewKey())
	merged := Merge(c, []Key{a.Key, b.Key}, b.Sign(c), a.Sign(c), a.Sign(c), x.Sign(c), []byte("rubbish"))
	for _, s := range []Signer{a, b} {
		v, err := note.NewVerifier(s.Key.String())
		if err != nil {
			t.Fatal(err)
		}
		n, err := note.Open(merged, note.VerifierList(v))
		if err != nil || n.Text != c.Text() || len(n.UnverifiedSigs) != 1 {
			t.Errorf("the Go team's package: %v, %+v", err, n)
		}
		parsed, err := ParseKey(s.Key.String() + "\n")
		if err != nil || parsed.String() != s.Key.String() || parsed.ID != s.Key.ID {
			t.Errorf("the key read back: %+v, %v", parsed, err)
		}
	}
	got, by, err := Open(merged, []Key{x.Key, b.Key, a.Key})
	if err != nil || got != c || len(by) != 2 || by[0].ID != b.Key.ID {
		t.Errorf("opened: %+v by %v, %v", got, by, err)
	}
	if id, ok := got.Cell(); !ok || id != cell {
		t.Errorf("the cell is %q", id)
	}
	skey, vkey, err := note.GenerateKey(nil, pcm.LogOrigin(cell))
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := note.NewSigner(skey)
	theirs, err := note.Sign(&note.Note{Text: c.Text()}, signer)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKey(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if _, by, err := Open(theirs, []Key{k}); err != nil || len(by) != 1 {
		t.Errorf("a note of the Go team's package: %v, %v", by, err)
	}
	// A bad line by a known key spoils the note; a key of the same ID does not help it.
	forged := x
	forged.Key.ID = a.Key.ID
	if _, _, err := Open(forged.Sign(c), []Key{a.Key}); pcm.ErrorCode(err) != pcm.Unauthorized {
		t.Errorf("a forged line: %v", err)
	}
	if got := Merge(c, []Key{a.Key}, forged.Sign(c)); got != nil {
		t.Errorf("a forged line is merged: %s", got)
	}
	other := c
	other.Size++
	if got := Merge(c, []Key{a.Key}, a.Sign(other)); got != nil {
		t.Error("signatures of another head are merged")
	}
}

func TestBadCheckpoints(t *testing.T) {
	c := logOf(3).head(3)
	good := string(NewSigner(cell, pcm.NewKey()).Sign(c))
	if _, _, err := Open([]byte(good), nil); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":             "",
		"no signature":      c.Text(),
		"leading zero":      strings.Replace(good, "\n3\n", "\n03\n", 1),
		"negative":          strings.Replace(good, "\n3\n", "\n-3\n", 1),
		"huge":              strings.Replace(good, "\n3\n", "\n18446744073709551615\n", 1),
		"extension":         strings.Replace(good, "\n\n", "\nmore\n\n", 1),
		"short root":        strings.Replace(good, "=\n\n", "\n\n", 1),
		"space in origin":   strings.Replace(good, "pcm.jointcloud/", "pcm jointcloud/", 1),
		"control character": strings.Replace(good, "pcm.jointcloud/", "pcm\x1b/", 1),
		"no end":            strings.TrimSuffix(good, "\n"),
		"no base64":         strings.Replace(good, sigPrefix+pcm.LogOrigin(cell)+" ", sigPrefix+pcm.LogOrigin(cell)+" !", 1),
	} {
		if _, _, err := Open([]byte(bad), nil); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := NewSigner(cell, pcm.NewKey())
	f.Add(s.Sign(logOf(3).head(3)))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if c, _, err := Open(msg, []Key{s.Key}); err == nil {
			if again, err := ParseCheckpoint([]byte(c.Text())); err != nil || again != c {
				t.Errorf("%+v can't be read back: %v", c, err)
			}
		}
	})
}

func TestBundles(t *testing.T) {
	long := make([]byte, pcm.MaxRecord)
	b, err := AppendEntry(nil, long)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = AppendEntry(b, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := AppendEntry(nil, append(long, 1)); pcm.ErrorCode(err) != pcm.TooLarge {
		t.Errorf("an entry over the bound: %v", err)
	}
	got, err := SplitBundle(b, 2)
	if err != nil || len(got) != 2 || len(got[0]) != len(long) || len(got[1]) != 0 {
		t.Errorf("read back: %v", err)
	}
	for _, bad := range [][]byte{b[:len(b)-1], b[:1], append(slices.Clone(b), 0, 0), nil} {
		if _, err := SplitBundle(bad, 2); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

func TestProofFiles(t *testing.T) {
	l := logOf(700)
	s := NewSigner(cell, pcm.NewKey())
	tree := NewTree(l.head(700), l.read)
	var file []byte
	for _, i := range []int{0, 255, 699} {
		hashes, err := tree.Prove(t.Context(), uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		file = append(file, Proof{Entry: l[i], Index: uint64(i), Hashes: hashes, Checkpoint: s.Sign(tree.Head())}.Marshal()...)
	}
	list, err := ParseProofs(file)
	if err != nil || len(list) != 3 {
		t.Fatalf("%d proofs, %v", len(list), err)
	}
	for _, p := range list {
		if _, by, err := p.Check([]Key{s.Key}); err != nil || len(by) != 1 {
			t.Errorf("proof of %d: by %v, %v", p.Index, by, err)
		}
		moved := p
		moved.Index ^= 1
		if _, _, err := moved.Check(nil); err == nil {
			t.Errorf("the proof of %d proves %d", p.Index, moved.Index)
		}
	}
	for name, bad := range map[string]string{
		"empty":       "",
		"other":       "hello",
		"no index":    proofHeader + "\n\nx\n",
		"bad index":   proofHeader + "\nindex 01\n\nx\n",
		"bad hash":    proofHeader + "\nindex 1\nAAAA\n\nx\n",
		"too high":    proofHeader + "\nindex 1\n" + strings.Repeat("gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\n", 65) + "\nx\n",
		"no note":     proofHeader + "\nindex 1\n",
		"bad extra":   proofHeader + "\nextra ?\nindex 1\n\nx\n",
		"second torn": string(file[:len(file)/2]) + proofHeader + "\n",
	} {
		if list, err := ParseProofs([]byte(bad)); err == nil {
			if _, _, err = list[len(list)-1].Check(nil); err == nil {
				t.Errorf("%s is a proof", name)
			}
		}
	}
}

func FuzzParseProofs(f *testing.F) {
	l := logOf(5)
	f.Add(Proof{Entry: l[1], Index: 1, Hashes: [][32]byte{{1}, {2}}, Checkpoint: NewSigner(cell, pcm.NewKey()).Sign(l.head(5))}.Marshal())
	f.Fuzz(func(t *testing.T, file []byte) {
		list, err := ParseProofs(file)
		for i := 0; err == nil && i < len(list); i++ {
			list[i].Check(nil) // must not panic
		}
	})
}
