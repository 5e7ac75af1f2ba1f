package pcm

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The identifiers. All are printable, compare as strings and have a type of their own.
type (
	PeerID    string // a libp2p peer ID (Ed25519), e.g. "12D3KooWGzBj…"
	AccountID string // an account's public key, e.g. "acc-4q7lqk3v…" (52 characters after the dash)
	MeshID    string // hash of the mesh's root key, e.g. "mesh-ab2k7q…"
	CellID    string // immutable, random, e.g. "cell-7xk2q…"
	JobID     string // random, e.g. "job-x7k2mq4w…"
	TradeID   string // hash of (job, fence), e.g. "trd-p3q8…"
	PoolID    string // seller's name for a pool within its peer, e.g. "local-process"
	Digest    string // lower-case hex SHA-256 of content, e.g. "9f86d081…" (64 characters)
)

var b32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

const idBytes = 10 // 80 bits: 16 characters

// NewJobID draws a random job ID.
func NewJobID() JobID { return JobID("job-" + random()) }

// NewCellID draws a random cell ID.
func NewCellID() CellID { return CellID("cell-" + random()) }

func random() string {
	var b [idBytes]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return b32.EncodeToString(b[:])
}

// NewTradeID derives the ID of the trade that one Place of a job opens. The
// fencing token is unique within the job, so the ID is as well.
func NewTradeID(job JobID, fence uint64) TradeID {
	sum := sha256.Sum256(MustMarshal([]any{"pcm/trade/1", job, fence}))
	return TradeID("trd-" + b32.EncodeToString(sum[:idBytes]))
}

// newNettingKey is the ID by which a cell remembers that a netting was applied.
func newNettingKey(a, b AccountID, id NettingID) NettingID {
	sum := sha256.Sum256(MustMarshal([]any{"pcm/netting/1", a, b, id}))
	return NettingID("net-" + b32.EncodeToString(sum[:idBytes]))
}

// newTradeIDAbroad is NewTradeID for a trade in another cell than its job.
func newTradeIDAbroad(home CellID, buyer AccountID, job JobID, fence uint64) TradeID {
	sum := sha256.Sum256(MustMarshal([]any{"pcm/trade/2", home, buyer, job, fence}))
	return TradeID("trd-" + b32.EncodeToString(sum[:idBytes]))
}

// NewMeshID derives the mesh ID from the root public key (32 bytes).
func NewMeshID(root []byte) MeshID {
	sum := sha256.Sum256(append([]byte("pcm/mesh/1\n"), root...))
	return MeshID("mesh-" + b32.EncodeToString(sum[:idBytes]))
}

// DigestOf is the SHA-256 of data.
func DigestOf(data []byte) Digest {
	sum := sha256.Sum256(data)
	return Digest(hex.EncodeToString(sum[:]))
}

// Valid tells whether d has the form of a digest.
func (d Digest) Valid() bool {
	if len(d) != 64 {
		return false
	}
	for i := range len(d) {
		if c := d[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// validID tells whether s is the prefix and 16 letters of base 32.
func validID(prefix, s string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok || len(rest) != 16 {
		return false
	}
	for i := range len(rest) {
		if c := rest[i]; (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// Valid tells whether the ID has the right form.
func (id JobID) Valid() bool   { return validID("job-", string(id)) }
func (id TradeID) Valid() bool { return validID("trd-", string(id)) }
func (id CellID) Valid() bool  { return validID("cell-", string(id)) }
func (id MeshID) Valid() bool  { return validID("mesh-", string(id)) }

// ValidName tells whether s may name a pool, step, label, class or peer: 1 to 63
// lower-case letters, digits, dots, dashes and underscores, with a letter or digit at both ends.
func ValidName(s string) bool { return nameForm.MatchString(s) }

// Printable tells whether s is safe to show on a terminal or page line: UTF-8
// without control or invisible characters. Names by other peers are checked with it.
func Printable(s string) bool {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return false
			}
		}
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// Clean makes a stranger's text fit for a log or a terminal: one line, nothing
// that steers, at most limit bytes.
func Clean(s string, limit int) string {
	if len(s) > 4*limit {
		s = s[:4*limit]
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError, unicode.IsSpace(r), unicode.IsControl(r):
			return ' '
		case unicode.In(r, unicode.Cf, unicode.Co, unicode.Cs):
			return -1 // also those that turn the direction of writing
		case !unicode.IsPrint(r):
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= limit {
		return s
	}
	cut := limit - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// Short abbreviates an ID for tables: the prefix and eight characters; for a
// peer ID its last eight, since the first ones are the same for all.
func Short[T ~string](id T) string {
	s := string(id)
	if strings.HasPrefix(s, "12D3KooW") && len(s) > 16 {
		return s[len(s)-8:]
	}
	if i := strings.IndexByte(s, '-'); i > 0 && len(s) > i+9 {
		return s[:i+9]
	}
	if len(s) > 12 {
		return s[:12]
	}
	return s
}
