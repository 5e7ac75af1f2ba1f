package consensus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// No byte of what Raft keeps of its votes can change unnoticed: either nothing that is
// read of it is different, or the file is said to be damaged.
func TestVoteBits(t *testing.T) {
	n := found(t, &book{}, nil)
	n.propose(t, n.cfg.Self)
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.dir, fileLog)
	read := func() (out [4]string, err error) {
		b, err := openLog(path)
		if err != nil {
			return out, err
		}
		defer b.Close()
		if err := (&voteStore{b, path}).check(1); err != nil {
			return out, err
		}
		for i, key := range [][]byte{keyCurrentTerm, keyLastVoteTerm, keyLastVoteCand, keyStore} {
			v, err := b.Get(key)
			if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
				return out, err
			}
			out[i] = string(v)
		}
		return out, nil
	}
	whole, err := os.ReadFile(path) // as it was left: to open it writes to it
	if err != nil {
		t.Fatal(err)
	}
	want, err := read()
	if err != nil || want[0] == "" || want[1] == "" || want[2] != string(n.cfg.Self) || want[3] != StoreWAL {
		t.Fatalf("it reads %q: %v", want, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	b := &boltFile{f: f, size: uint64(len(whole)), seen: map[uint64]bool{}}
	if err := b.check(); err != nil {
		t.Fatal(err)
	}
	b.seen[0], b.seen[1] = true, true
	used := whole[:b.pages*b.pageSize]
	for id := range b.seen {
		for i, was := range bytes.TrimRight(used[id*b.pageSize:(id+1)*b.pageSize], "\x00") {
			if _, err := f.WriteAt(used, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{was ^ 1<<(i%8)}, int64(id*b.pageSize)+int64(i)); err != nil {
				t.Fatal(err)
			}
			have, err := read()
			if err != nil {
				continue
			}
			if have[2] != "" { // nobody has an ID that is almost another one's
				have[2] = want[2]
			}
			have[3] = want[3] // with another mark the log is not moved: that there is one shows then
			if have != want {
				t.Errorf("byte %d of page %d changed: it reads %q, not %q", i, id, have, want)
			}
		}
	}
}

// Terms of older releases have no checksum, and get one. What can't be is refused.
func TestVoteStore(t *testing.T) {
	open := func() *voteStore {
		path := filepath.Join(t.TempDir(), fileLog)
		b, err := openLog(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return &voteStore{b, path}
	}
	v := open()
	for key, n := range map[string]uint64{string(keyCurrentTerm): 7, string(keyLastVoteTerm): 6} {
		if err := v.BoltStore.SetUint64([]byte(key), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Set(keyLastVoteCand, []byte("somebody")); err != nil {
		t.Fatal(err)
	}
	if err := v.check(7); err != nil {
		t.Fatal(err)
	}
	if data, err := v.Get(keyCurrentTerm); err != nil || string(data) != string(sealedTerm(keyCurrentTerm, 7)) {
		t.Errorf("%x: %v", data, err)
	}
	if n, err := v.BoltStore.GetUint64(keyLastVoteTerm); err != nil || n != 6 {
		t.Errorf("an older release reads %d: %v", n, err)
	}
	if err := v.check(8); err == nil {
		t.Error("an entry of a later term was believed")
	}
	if err := v.SetUint64(keyLastVoteTerm, 8); err != nil {
		t.Fatal(err)
	}
	if err := v.check(7); err == nil {
		t.Error("a vote in a later term was believed")
	}
	if err := v.Set(keyLastVoteTerm, sealedTerm(keyCurrentTerm, 6)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.GetUint64(keyLastVoteTerm); err == nil {
		t.Error("another term's checksum was believed")
	}
	half := open()
	if err := half.Set(keyLastVoteCand, []byte("somebody")); err != nil {
		t.Fatal(err)
	}
	if err := half.check(0); err == nil {
		t.Error("half a vote was believed")
	}
}
