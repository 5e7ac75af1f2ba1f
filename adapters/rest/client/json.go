package client

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
)

// Bounds of a JSON text beside its size.
const (
	maxDepth  = 64
	maxValues = 200_000
	maxNumber = 256 // characters
)

// decodeJSON reads one JSON value into maps, slices, strings, booleans, nil and
// [json.Number], which keeps numbers as they were written. What two readers could
// understand differently is refused: a key that is there twice, text behind the
// value. encoding/json finds no such keys.
func decodeJSON(data []byte) (any, error) {
	r := jsonReader{data: bytes.TrimPrefix(data, []byte("\ufeff"))}
	v, err := r.value(0)
	if err != nil {
		return nil, err
	}
	if r.peek(); r.at < len(r.data) {
		return nil, pcm.Errorf(pcm.Invalid, "there is more behind the first JSON value, at byte %d", r.at)
	}
	return v, nil
}

type jsonReader struct {
	data   []byte
	at     int
	values int
}

// peek skips white space; it is the byte that follows, 0 at the end.
func (r *jsonReader) peek() byte {
	for ; r.at < len(r.data); r.at++ {
		switch c := r.data[r.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (r *jsonReader) bad() error {
	if r.at >= len(r.data) {
		return pcm.Errorf(pcm.Invalid, "the JSON ends too early, at byte %d", len(r.data))
	}
	return pcm.Errorf(pcm.Invalid, "no valid JSON at byte %d", r.at)
}

func (r *jsonReader) value(depth int) (any, error) {
	if r.values++; r.values > maxValues {
		return nil, pcm.Errorf(pcm.TooLarge, "the JSON has more than %d values", maxValues)
	}
	switch c := r.peek(); {
	case c == '{' || c == '[':
		if depth >= maxDepth {
			return nil, pcm.Errorf(pcm.TooLarge, "the JSON is nested over %d levels deep", maxDepth)
		}
		if r.at++; c == '{' {
			return r.object(depth + 1)
		}
		return r.array(depth + 1)
	case c == '"':
		return r.text()
	case c == '-' || '0' <= c && c <= '9':
		return r.number()
	case c == 't':
		return true, r.word("true")
	case c == 'f':
		return false, r.word("false")
	case c == 'n':
		return nil, r.word("null")
	}
	return nil, r.bad()
}

func (r *jsonReader) word(w string) error {
	for i := range len(w) {
		if r.at >= len(r.data) || r.data[r.at] != w[i] {
			return r.bad()
		}
		r.at++
	}
	return nil
}

func (r *jsonReader) object(depth int) (any, error) {
	m := map[string]any{}
	if r.peek() == '}' {
		r.at++
		return m, nil
	}
	for {
		if r.peek() != '"' {
			return nil, r.bad()
		}
		key, err := r.text()
		if err != nil {
			return nil, err
		}
		if _, twice := m[key]; twice {
			return nil, pcm.Errorf(pcm.Invalid, "the JSON has the key %.64q twice in one object", key)
		}
		if r.peek() != ':' {
			return nil, r.bad()
		}
		r.at++
		if m[key], err = r.value(depth); err != nil {
			return nil, err
		}
		if more, err := r.more('}'); err != nil || !more {
			return m, err
		}
	}
}

func (r *jsonReader) array(depth int) (any, error) {
	a := []any{}
	if r.peek() == ']' {
		r.at++
		return a, nil
	}
	for {
		v, err := r.value(depth)
		if err != nil {
			return nil, err
		}
		a = append(a, v)
		if more, err := r.more(']'); err != nil || !more {
			return a, err
		}
	}
}

// more tells whether a comma follows rather than the end.
func (r *jsonReader) more(end byte) (bool, error) {
	switch r.peek() {
	case ',':
		r.at++
		return true, nil
	case end:
		r.at++
		return false, nil
	}
	return false, r.bad()
}

// text reads a string, which begins here.
func (r *jsonReader) text() (string, error) {
	plain := true
	for i := r.at + 1; i < len(r.data); i++ {
		switch c := r.data[i]; {
		case c == '"':
			raw := r.data[r.at : i+1]
			var s string
			if inner := raw[1 : len(raw)-1]; plain && utf8.Valid(inner) {
				s = string(inner)
			} else if json.Unmarshal(raw, &s) != nil {
				return "", r.bad()
			}
			r.at = i + 1
			return s, nil
		case c == '\\':
			plain = false
			i++
		case c < ' ':
			r.at = i
			return "", r.bad()
		}
	}
	r.at = len(r.data)
	return "", r.bad()
}

func (r *jsonReader) digits() bool {
	from := r.at
	for r.at < len(r.data) && '0' <= r.data[r.at] && r.data[r.at] <= '9' {
		r.at++
	}
	return r.at > from
}

// has skips one of some bytes.
func (r *jsonReader) has(some string) bool {
	if r.at < len(r.data) && bytes.IndexByte([]byte(some), r.data[r.at]) >= 0 {
		r.at++
		return true
	}
	return false
}

func (r *jsonReader) number() (any, error) {
	from := r.at
	r.has("-")
	if !r.has("0") && !r.digits() || r.has(".") && !r.digits() {
		return nil, r.bad()
	}
	if r.has("eE") {
		if r.has("+-"); !r.digits() {
			return nil, r.bad()
		}
	}
	if n := r.at - from; n > maxNumber {
		return nil, pcm.Errorf(pcm.TooLarge, "the JSON has a number of %d digits", n)
	}
	return json.Number(r.data[from:r.at]), nil
}
