package expr

import (
	"strings"

	"github.com/theory/jsonpath"
	"github.com/theory/jsonpath/spec"

	"github.com/jointcloud/pcm"
)

type jsonPath struct {
	path *jsonpath.Path
	of   string // the variable that it is of
}

// IsPath tells whether the source is JSONPath: it begins with "$." or "$[".
func IsPath(source string) bool {
	return strings.HasPrefix(source, "$.") || strings.HasPrefix(source, "$[")
}

// CompilePath is [Env.Compile], but takes what begins with "$." or "$[" as a
// JSONPath (RFC 9535) into the variable of. It gives the value that it finds, a list
// if it may find several, nothing if there is none.
func (e *Env) CompilePath(source, of string) (*Expr, error) {
	if !IsPath(source) {
		return e.Compile(source)
	}
	if len(source) > MaxSource {
		return nil, pcm.Errorf(pcm.Invalid, "the path has %d bytes, over the bound of %d", len(source), MaxSource)
	}
	p, err := jsonpath.Parse(source)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "in JSONPath %q: %w", short(source), err)
	}
	return &Expr{source: source, path: &jsonPath{p, of}}, nil
}

func (p *jsonPath) eval(vars map[string]any) (any, error) {
	found := p.path.Select(vars[p.of])
	switch {
	case p.path.Query().Singular() == nil:
		return []any(found), nil
	case len(found) == 0:
		return nil, nil
	}
	return found[0], nil
}

// Wildcard is a step of a JSONPath: all elements.
type Wildcard struct{}

// Steps are those of a JSONPath into the variable of: a text for a field, an int64
// for an element, a [Wildcard]. ok is false where there are others, such as filters.
func (x *Expr) Steps() (of string, steps []any, ok bool) {
	if x.path == nil {
		return "", nil, false
	}
	for _, segment := range x.path.path.Query().Segments() {
		if segment.IsDescendant() || len(segment.Selectors()) != 1 {
			return "", nil, false
		}
		switch s := segment.Selectors()[0].(type) {
		case spec.Name:
			steps = append(steps, string(s))
		case spec.Index:
			steps = append(steps, int64(s))
		case spec.WildcardSelector:
			steps = append(steps, Wildcard{})
		default:
			return "", nil, false
		}
	}
	return x.path.of, steps, true
}
