package pcm

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// MaxMessage bounds every message that is decoded from another peer: 4 MiB.
// Bulk data travels in chunks, never in one message.
const MaxMessage = 4 << 20

// Bytes that are signed, hashed or replicated are CBOR in its core
// deterministic form (RFC 8949, section 4.2.1): one value, one encoding.
var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		MaxNestedLevels:   16,
		MaxArrayElements:  131072,
		MaxMapPairs:       131072,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		TagsMd:            cbor.TagsForbidden,
	}.DecMode())
	ownMode = must(cbor.DecOptions{
		MaxNestedLevels:  32,
		MaxArrayElements: 1<<31 - 1,
		MaxMapPairs:      1<<31 - 1,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal encodes v as deterministic CBOR. The nouns of this package always
// encode; an error means that v holds something that isn't data.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// MustMarshal is Marshal for the nouns of this package, which always encode.
func MustMarshal(v any) []byte { return must(encMode.Marshal(v)) }

// Unmarshal decodes one CBOR value, strictly: unknown fields, duplicate keys,
// tags, indefinite lengths, deep nesting and trailing bytes are refused.
// The error is an *Error with code Invalid.
func Unmarshal(data []byte, v any) error {
	if len(data) > MaxMessage {
		return Errorf(TooLarge, "message of %d bytes is over the bound of %d", len(data), MaxMessage)
	}
	if err := decMode.Unmarshal(data, v); err != nil {
		return Errorf(Invalid, "can't decode %s: %w", typeName(v), err)
	}
	return nil
}

func typeName(v any) string { return fmt.Sprintf("%T", v) }

// UnmarshalLarge is Unmarshal without the bound on size, for data that this
// machine wrote itself: snapshots and documents.
func UnmarshalLarge(data []byte, v any) error {
	if err := ownMode.Unmarshal(data, v); err != nil {
		return Errorf(Invalid, "can't decode %s: %w", typeName(v), err)
	}
	return nil
}
