package tlog

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	xtlog "golang.org/x/mod/sumdb/tlog"

	"github.com/jointcloud/pcm"
)

// Proof shows offline that an entry is in a log (https://c2sp.org/tlog-proof).
// The entry itself travels as the extra data.
type Proof struct {
	Entry      []byte
	Index      uint64
	Hashes     [][HashSize]byte // from the leaf's sibling up
	Checkpoint []byte           // signed note
}

const proofHeader = "c2sp.org/tlog-proof@v1"

// Bounds of a file of proofs.
const (
	MaxProofFile = 64 << 20
	maxProofs    = 4096
)

// Marshal is the proof's text.
func (p Proof) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofHeader, base64.StdEncoding.EncodeToString(p.Entry), p.Index)
	for _, h := range p.Hashes {
		fmt.Fprintln(&b, base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// ParseProofs reads a file of proofs, one after the other. A file of one is what
// other tools for the format read as well.
func ParseProofs(file []byte) ([]Proof, error) {
	if len(file) > MaxProofFile {
		return nil, pcm.Errorf(pcm.TooLarge, "the file has %d bytes, at most %d are read", len(file), MaxProofFile)
	}
	var list []Proof
	for rest := string(file); rest != ""; {
		if !strings.HasPrefix(rest, proofHeader+"\n") {
			return nil, pcm.Errorf(pcm.Invalid, "proof %d does not begin with %q", len(list)+1, proofHeader)
		}
		if len(list) == maxProofs {
			return nil, pcm.Errorf(pcm.TooLarge, "the file has more than %d proofs", maxProofs)
		}
		one := rest
		if i := strings.Index(rest[1:], "\n"+proofHeader+"\n"); i >= 0 {
			one = rest[:i+2]
		}
		rest = rest[len(one):]
		p, err := parseProof(one)
		if err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "proof %d: %w", len(list)+1, err)
		}
		list = append(list, p)
	}
	if len(list) == 0 {
		return nil, pcm.Errorf(pcm.Invalid, "the file holds no proof: it should begin with %q", proofHeader)
	}
	return list, nil
}

func parseProof(text string) (p Proof, err error) {
	head, checkpoint, ok := strings.Cut(text, "\n\n")
	if !ok {
		return p, fmt.Errorf("it has no checkpoint")
	}
	p.Checkpoint = []byte(checkpoint)
	lines := strings.Split(head, "\n")[1:]
	if len(lines) > 0 {
		if extra, ok := strings.CutPrefix(lines[0], "extra "); ok {
			if p.Entry, err = base64.StdEncoding.Strict().DecodeString(extra); err != nil {
				return p, fmt.Errorf("its extra data is not base64")
			}
			lines = lines[1:]
		}
	}
	if len(lines) == 0 {
		return p, fmt.Errorf("it names no index")
	}
	index, ok := strings.CutPrefix(lines[0], "index ")
	if p.Index, err = strconv.ParseUint(index, 10, 64); !ok || err != nil || strconv.FormatUint(p.Index, 10) != index {
		return p, fmt.Errorf("it names no index")
	}
	if len(lines) > 65 {
		return p, fmt.Errorf("it has %d hashes: no tree is that high", len(lines)-1)
	}
	for _, l := range lines[1:] {
		h, err := base64.StdEncoding.Strict().DecodeString(l)
		if err != nil || len(h) != HashSize {
			return p, fmt.Errorf("%.60q is not a hash", l)
		}
		p.Hashes = append(p.Hashes, [HashSize]byte(h))
	}
	return p, nil
}

// Check verifies that the entry is in the log of the proof's checkpoint, and
// tells which of keys have signed that. The caller decides how many it wants.
func (p Proof) Check(keys []Key) (Checkpoint, []Key, error) {
	c, by, err := Open(p.Checkpoint, keys)
	if err != nil {
		return c, nil, err
	}
	if p.Index >= c.Size {
		return c, nil, pcm.Errorf(pcm.Invalid, "entry %d is beyond the checkpoint's %d entries", p.Index, c.Size)
	}
	proof := make(xtlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		proof[i] = h
	}
	if err := xtlog.CheckRecord(proof, int64(c.Size), xtlog.Hash(c.Root), int64(p.Index), xtlog.RecordHash(p.Entry)); err != nil {
		return c, nil, pcm.Errorf(pcm.Invalid, "the entry is not entry %d of the log at %d entries: %w", p.Index, c.Size, err)
	}
	return c, by, nil
}
