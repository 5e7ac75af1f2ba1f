package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

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
// understand differently is refused: a key that is there twice, text behind the value.
func decodeJSON(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
	d.UseNumber()
	r := jsonReader{d: d}
	v, err := r.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, pcm.Errorf(pcm.Invalid, "there is more behind the first JSON value, at byte %d", d.InputOffset())
	}
	return v, nil
}

type jsonReader struct {
	d      *json.Decoder
	values int
}

func (r *jsonReader) token() (json.Token, error) {
	t, err := r.d.Token()
	if errors.Is(err, io.EOF) {
		return nil, pcm.Errorf(pcm.Invalid, "the JSON ends too early, at byte %d", r.d.InputOffset())
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "no valid JSON near byte %d", r.d.InputOffset())
	}
	return t, nil
}

func (r *jsonReader) value(depth int) (any, error) {
	t, err := r.token()
	if err != nil {
		return nil, err
	}
	return r.rest(t, depth)
}

// rest reads what follows a value's first token.
func (r *jsonReader) rest(t json.Token, depth int) (any, error) {
	if r.values++; r.values > maxValues {
		return nil, pcm.Errorf(pcm.TooLarge, "the JSON has more than %d values", maxValues)
	}
	switch t := t.(type) {
	case json.Number:
		if len(t) > maxNumber {
			return nil, pcm.Errorf(pcm.TooLarge, "the JSON has a number of %d digits", len(t))
		}
		return t, nil
	case json.Delim:
		if depth >= maxDepth {
			return nil, pcm.Errorf(pcm.TooLarge, "the JSON is nested over %d levels deep", maxDepth)
		}
		if t == '{' {
			return r.object(depth + 1)
		}
		return r.array(depth + 1)
	}
	return t, nil
}

func (r *jsonReader) object(depth int) (any, error) {
	m := map[string]any{}
	for {
		t, err := r.token()
		if err != nil {
			return nil, err
		}
		key, ok := t.(string)
		if !ok {
			return m, nil // the closing brace: the decoder lets nothing else by
		}
		if _, twice := m[key]; twice {
			return nil, pcm.Errorf(pcm.Invalid, "the JSON has the key %.64q twice in one object", key)
		}
		if m[key], err = r.value(depth); err != nil {
			return nil, err
		}
	}
}

func (r *jsonReader) array(depth int) (any, error) {
	a := []any{}
	for {
		t, err := r.token()
		if err != nil {
			return nil, err
		}
		if t == json.Delim(']') {
			return a, nil
		}
		v, err := r.rest(t, depth)
		if err != nil {
			return nil, err
		}
		a = append(a, v)
	}
}
