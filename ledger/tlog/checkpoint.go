package tlog

import (
	"bytes"
	stded25519 "crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/jointcloud/pcm"
)

// Checkpoint is the head of a log: so many entries have this RFC 6962 root.
type Checkpoint struct {
	Origin string // e.g. "pcm.jointcloud/cell-7xk2q…", see [pcm.LogOrigin]
	Size   uint64
	Root   [HashSize]byte
}

// Text is what is signed.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// Cell is the cell that the origin names; false if it names none.
func (c Checkpoint) Cell() (pcm.CellID, bool) {
	_, id, ok := strings.Cut(c.Origin, "/")
	cell := pcm.CellID(id)
	return cell, ok && cell.Valid() && pcm.LogOrigin(cell) == c.Origin
}

// ParseCheckpoint reads the text of a checkpoint: a note, whose signatures it
// does not check, or the text alone. Extension lines are refused: nobody who
// verifies the log could check what they say.
func ParseCheckpoint(msg []byte) (Checkpoint, error) {
	var c Checkpoint
	bad := func(why string) (Checkpoint, error) {
		return c, pcm.Errorf(pcm.Invalid, "not a checkpoint: %s", why)
	}
	if len(msg) > MaxCheckpoint {
		return bad(fmt.Sprintf("it has %d bytes, at most %d are read", len(msg), MaxCheckpoint))
	}
	text, _, _ := strings.Cut(string(msg), "\n\n")
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != 3 {
		return bad("it has not the three lines origin, size, root")
	}
	c.Origin = lines[0]
	if c.Origin == "" || !pcm.Printable(c.Origin) || strings.ContainsAny(c.Origin, " +") {
		return bad(fmt.Sprintf("%.80q is no origin", c.Origin))
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > MaxSize || strconv.FormatUint(size, 10) != lines[1] {
		return bad(fmt.Sprintf("%.40q is no size", lines[1]))
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != HashSize {
		return bad(fmt.Sprintf("%.80q is no root", lines[2]))
	}
	c.Size = size
	copy(c.Root[:], root)
	return c, nil
}

// Key verifies checkpoints of one log.
type Key struct {
	Name   string
	ID     uint32
	Public []byte // 32 bytes, Ed25519
}

// NewKey is the key with which a peer signs the checkpoints of a cell.
func NewKey(cell pcm.CellID, public []byte) Key {
	return Key{Name: pcm.LogOrigin(cell), ID: pcm.NoteKeyID(cell, public), Public: public}
}

const algEd25519 = 1

// String is the verifier key as tools for notes read it.
func (k Key) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.Name, k.ID, base64.StdEncoding.EncodeToString(append([]byte{algEd25519}, k.Public...)))
}

// ParseKey reads a verifier key, "NAME+ID+KEY".
func ParseKey(vkey string) (Key, error) {
	vkey = strings.TrimSpace(vkey)
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return Key{}, pcm.Errorf(pcm.Invalid, "%.150q is not a verifier key of the form NAME+ID+KEY: %w", vkey, err)
	}
	parts := strings.SplitN(vkey, "+", 3) // as NewVerifier did: a name has no plus
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(raw) != 1+stded25519.PublicKeySize {
		return Key{}, pcm.Errorf(pcm.Invalid, "%.150q is not an Ed25519 verifier key", vkey)
	}
	return Key{Name: v.Name(), ID: v.KeyHash(), Public: raw[1:]}, nil
}

// Signer signs with a key.
type Signer struct {
	Key Key
	key stded25519.PrivateKey
}

// NewSigner makes the signer of a cell's checkpoints out of a key.
func NewSigner(cell pcm.CellID, k pcm.Key) Signer {
	return Signer{Key: NewKey(cell, k.Public()), key: stded25519.NewKeyFromSeed(k.Seed())}
}

// Sign is the signature line of a checkpoint, as a note of this one signature.
func (s Signer) Sign(c Checkpoint) []byte {
	text := c.Text()
	sig := binary.BigEndian.AppendUint32(nil, s.Key.ID)
	sig = append(sig, stded25519.Sign(s.key, []byte(text))...)
	return fmt.Appendf(nil, "%s\n%s%s %s\n", text, sigPrefix, s.Key.Name, base64.StdEncoding.EncodeToString(sig))
}

const sigPrefix = "— "

// maxSignatures bounds the signature lines of a note that is read.
const maxSignatures = 64

// Open reads a signed checkpoint and tells which of keys have signed it, in
// their order. Lines by others are ignored. A line that claims to be by one of
// keys and is not valid makes the note invalid, as the format demands.
func Open(msg []byte, keys []Key) (Checkpoint, []Key, error) {
	c, err := ParseCheckpoint(msg)
	if err != nil {
		return c, nil, err
	}
	text, lines, err := splitNote(msg)
	if err != nil {
		return c, nil, err
	}
	var by []Key
	for _, k := range keys {
		i := slices.IndexFunc(lines, func(l sigLine) bool { return l.name == k.Name && l.id == k.ID })
		if i < 0 {
			continue
		}
		if len(k.Public) != stded25519.PublicKeySize || !stded25519.Verify(k.Public, text, lines[i].sig) {
			return c, nil, pcm.Errorf(pcm.Unauthorized, "the checkpoint of %d entries has a signature by key %s+%08x that is not valid", c.Size, k.Name, k.ID)
		}
		by = append(by, k)
	}
	return c, by, nil
}

type sigLine struct {
	name string
	id   uint32
	sig  []byte
	line string
}

// splitNote takes a note apart into its text and its signature lines.
func splitNote(msg []byte) (text []byte, lines []sigLine, err error) {
	i := bytes.LastIndex(msg, []byte("\n\n"))
	if i < 0 || len(msg) > MaxCheckpoint || msg[len(msg)-1] != '\n' {
		return nil, nil, pcm.Errorf(pcm.Invalid, "not a signed note: there is no signature")
	}
	for line := range strings.Lines(string(msg[i+2:])) {
		rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), sigPrefix)
		name, encoded, ok2 := strings.Cut(rest, " ")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || !ok2 || name == "" || err != nil || len(raw) < 5 || len(lines) == maxSignatures {
			return nil, nil, pcm.Errorf(pcm.Invalid, "not a signed note: %.100q is no signature", line)
		}
		lines = append(lines, sigLine{name, binary.BigEndian.Uint32(raw), raw[4:], line})
	}
	return msg[:i+1], lines, nil
}

// Merge makes one note of several of the same text, with the lines by keys, each
// once and in the order of keys. Notes of another text, or that are not valid,
// count for nothing. Nil if there is no line at all.
func Merge(c Checkpoint, keys []Key, notes ...[]byte) []byte {
	lines := make([]string, len(keys))
	for _, msg := range notes {
		got, by, err := Open(msg, keys)
		if err != nil || got != c {
			continue
		}
		_, all, _ := splitNote(msg)
		for i, k := range keys {
			if !slices.ContainsFunc(by, func(o Key) bool { return o.ID == k.ID && o.Name == k.Name }) {
				continue
			}
			for _, l := range all {
				if l.name == k.Name && l.id == k.ID {
					lines[i] = l.line
					break
				}
			}
		}
	}
	if sum := strings.Join(lines, ""); sum != "" {
		return []byte(c.Text() + "\n" + sum)
	}
	return nil
}
