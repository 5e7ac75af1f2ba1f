package pcm

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// MaxYAML bounds a YAML or JSON file that a person wrote: 1 MiB.
const MaxYAML = 1 << 20

// Bounds of a file's structure. The parser takes time and memory that grow with
// the square of depth and of keys, and aliases can stand for more than fits.
const (
	maxYAMLDepth = 64
	maxYAMLKeys  = 20_000
	maxYAMLNodes = 200_000 // with aliases counted as what they stand for
	maxFaults    = 50      // reported; one says how many more there are
)

// FileFault is one thing that is wrong in a file.
type FileFault struct {
	Line    int    `json:"line,omitempty"` // from 1; 0: unknown
	Column  int    `json:"column,omitempty"`
	Field   string `json:"field,omitempty"` // path like "steps[0].resources.cpu"; "" for the file as a whole
	Message string `json:"message"`
}

// FileError is all that is wrong in a file. Its text has a line for each fault,
// as compilers write them: "job.yaml:3:5: steps[0].comand: no such field; did you mean command?".
type FileError struct {
	File   string      `json:"file"`
	Faults []FileFault `json:"faults"`
}

func (e *FileError) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		var b strings.Builder
		b.WriteString(e.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", f.Line, f.Column)
		}
		b.WriteString(": ")
		if f.Field != "" {
			b.WriteString(f.Field + ": ")
		}
		lines[i] = b.String() + f.Message
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes [ErrorCode] find Invalid.
func (e *FileError) Unwrap() error { return &Error{Code: Invalid, Message: e.Error()} }

// Positions tell where the fields of a decoded file stand.
type Positions map[string]Position

// Position is a place in a file, both from 1.
type Position struct{ Line, Column int }

// Of finds the field's place or, if the file doesn't have it, that of the
// nearest field around it.
func (p Positions) Of(field string) Position {
	for {
		if at, ok := p[field]; ok || field == "" {
			return at
		}
		field = field[:max(strings.LastIndexAny(field, ".["), 0)]
	}
}

// DecodeYAML decodes a YAML or JSON file strictly into the struct that into
// points to, whose fields are named by their json tags. A field may be a string (any
// scalar is taken as it is written), bool, integer, float, time.Duration,
// [encoding.TextUnmarshaler], struct, or a pointer, slice or string-keyed map of those.
//
// Unknown and duplicate keys, wrong types, empty values, a second document and
// structure beyond the bounds are faults. The error is a *FileError with all of
// them; the positions are there in any case.
func DecodeYAML(data []byte, filename string, into any) (Positions, error) {
	d := &yamlDecoder{at: Positions{}, anchors: map[string]ast.Node{}}
	d.file(data, into)
	if len(d.faults) == 0 {
		return d.at, nil
	}
	return d.at, &FileError{filename, trimFaults(d.faults)}
}

func trimFaults(faults []FileFault) []FileFault {
	slices.SortStableFunc(faults, func(a, b FileFault) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	if n := len(faults) - maxFaults; n > 0 {
		faults = append(faults[:maxFaults], FileFault{Message: fmt.Sprintf("%d more faults", n)})
	}
	return faults
}

type yamlDecoder struct {
	at      Positions
	anchors map[string]ast.Node
	open    []string // aliases being resolved
	nodes   int
	faults  []FileFault
}

func (d *yamlDecoder) bad(at Position, field, format string, args ...any) {
	d.faults = append(d.faults, FileFault{at.Line, at.Column, field, fmt.Sprintf(format, args...)})
}

func (d *yamlDecoder) file(data []byte, into any) {
	if len(data) > MaxYAML {
		d.bad(Position{}, "", "the file has %s, at most %s are read: name large data as inputs instead of writing it here", Bytes(len(data)), Bytes(MaxYAML))
		return
	}
	tokens := lexer.Tokenize(string(data))
	if at, why := checkTokens(tokens); why != "" {
		d.bad(at, "", "%s", why)
		return
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // duplicates are found below, all of them
	if err != nil {
		d.syntax(err)
		return
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case body == nil:
			body = doc.Body
		default:
			d.bad(positionOf(doc.Body), "", "the file has a second document: only one is read")
			return
		}
	}
	if body == nil || body.Type() == ast.NullType {
		d.bad(Position{1, 1}, "", "the file is empty")
		return
	}
	d.at[""] = positionOf(body)
	d.value(body, "", d.at[""], reflect.ValueOf(into).Elem())
}

// syntax reports what the parser didn't understand.
func (d *yamlDecoder) syntax(err error) {
	at, message := Position{}, err.Error()
	if e, ok := err.(interface {
		GetToken() *token.Token
		GetMessage() string
	}); ok {
		message = e.GetMessage()
		if tk := e.GetToken(); tk != nil && tk.Position != nil {
			at = Position{tk.Position.Line, tk.Position.Column}
		}
	}
	d.bad(at, "", "not valid YAML: %s", firstLine(message))
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// checkTokens refuses structure that the parser would choke on.
func checkTokens(tokens token.Tokens) (Position, string) {
	depth, prefixes, line, keys := 0, 0, 0, 0
	for _, tk := range tokens {
		at := Position{tk.Position.Line, tk.Position.Column}
		switch tk.Type {
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		case token.MappingValueType:
			keys++
		}
		switch tk.Type {
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.AliasType, token.TagType, token.MappingValueType:
			if tk.Position.Line != line {
				line, prefixes = tk.Position.Line, 0
			}
			if depth == 0 {
				prefixes++
			}
		}
		switch {
		case depth > maxYAMLDepth || prefixes > maxYAMLDepth || tk.Position.IndentNum > 8*maxYAMLDepth:
			return at, fmt.Sprintf("nested deeper than %d levels", maxYAMLDepth)
		case keys > maxYAMLKeys:
			return at, fmt.Sprintf("more than %d keys", maxYAMLKeys)
		}
	}
	return Position{}, ""
}

// positionOf is where the node begins.
func positionOf(n ast.Node) Position {
	switch n := n.(type) {
	case *ast.MappingNode:
		if len(n.Values) > 0 && !n.IsFlowStyle {
			return positionOf(n.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return positionOf(n.Key)
	case *ast.AnchorNode:
		return positionOf(n.Value)
	case *ast.TagNode:
		return positionOf(n.Value)
	}
	if n == nil {
		return Position{}
	}
	tk := n.GetToken()
	if tk == nil || tk.Position == nil {
		return Position{}
	}
	return Position{tk.Position.Line, tk.Position.Column}
}

// resolve sees through anchors and aliases. It returns nil after a fault. The
// caller calls leave when it is done with the node.
func (d *yamlDecoder) resolve(n ast.Node, field string) (node ast.Node, leave func()) {
	leave = func() {}
	for {
		if d.nodes++; d.nodes > maxYAMLNodes {
			if d.nodes == maxYAMLNodes+1 {
				d.bad(positionOf(n), field, "the file is too large or its aliases stand for too much: more than %d values", maxYAMLNodes)
			}
			return nil, leave
		}
		switch v := n.(type) {
		case *ast.AnchorNode:
			d.anchors[v.Name.GetToken().Value] = v.Value
			n = v.Value
		case *ast.AliasNode:
			name := v.Value.GetToken().Value
			target, ok := d.anchors[name]
			if !ok {
				d.bad(positionOf(v.Value), field, "no anchor &%s stands before this alias", name)
				return nil, leave
			}
			if slices.Contains(d.open, name) {
				d.bad(positionOf(v.Value), field, "alias *%s stands for itself", name)
				return nil, leave
			}
			d.open = append(d.open, name)
			depth := len(d.open) - 1
			before := leave
			leave = func() { d.open = d.open[:depth]; before() }
			n = target
		case *ast.TagNode:
			n = v.Value // what it is decoded into says the type
		default:
			return n, leave
		}
	}
}

var (
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	durationType = reflect.TypeFor[time.Duration]()
)

// value decodes one node into v. At is where faults are reported.
func (d *yamlDecoder) value(n ast.Node, field string, at Position, v reflect.Value) {
	n, leave := d.resolve(n, field)
	defer leave()
	if n == nil {
		return
	}
	if n.Type() == ast.NullType {
		d.bad(at, field, "has no value: give one, or leave the field out")
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(n, field, at, v.Elem())
		return
	}
	if v.CanAddr() && v.Addr().Type().Implements(textType) {
		if text, ok := d.scalar(n, field, at, "text"); ok {
			if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
				d.bad(at, field, "%v", err)
			}
		}
		return
	}
	if v.Type() == durationType {
		if text, ok := d.scalar(n, field, at, "a length of time"); ok {
			t, err := time.ParseDuration(text)
			if err != nil {
				d.bad(at, field, "%q is not a length of time; write it like 90s, 10m or 2h", text)
			}
			v.SetInt(int64(t))
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		if text, ok := d.scalar(n, field, at, "text"); ok {
			v.SetString(text)
		}
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.bad(at, field, "is %s; true or false is needed", describe(n))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		d.integer(n, field, at, v)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.integer(n, field, at, v)
	case reflect.Float32, reflect.Float64:
		text, ok := "", false
		if n.Type() == ast.IntegerType || n.Type() == ast.FloatType {
			text, ok = d.scalar(n, field, at, "a number")
		}
		f, err := strconv.ParseFloat(text, 64)
		if !ok || err != nil || math.IsNaN(f) || v.OverflowFloat(f) {
			d.bad(at, field, "is %s; a number is needed", describe(n))
			return
		}
		v.SetFloat(f)
	case reflect.Slice:
		d.slice(n, field, at, v)
	case reflect.Map:
		d.mapping(n, field, at, v)
	case reflect.Struct:
		d.object(n, field, at, v)
	default:
		panic("pcm: DecodeYAML into a " + v.Type().String())
	}
}

// scalar is the text of a string, number or truth value, as it is written.
func (d *yamlDecoder) scalar(n ast.Node, field string, at Position, needed string) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	d.bad(at, field, "is %s; %s is needed", describe(n), needed)
	return "", false
}

func (d *yamlDecoder) integer(n ast.Node, field string, at Position, v reflect.Value) {
	in, ok := n.(*ast.IntegerNode)
	if !ok {
		if s, ok := n.(*ast.StringNode); ok && s.Token.Type == token.StringType && strings.Trim(s.Value, "0123456789") == "" {
			d.bad(at, field, "%.40s is out of range", s.Value) // so large that the parser took it for text
			return
		}
		d.bad(at, field, "is %s; a whole number is needed", describe(n))
		return
	}
	i, fits := int64(0), true
	switch x := in.Value.(type) {
	case int64:
		i = x
	case uint64:
		i, fits = int64(x), x <= math.MaxInt64
	default:
		fits = false
	}
	if v.CanInt() && fits && !v.OverflowInt(i) {
		v.SetInt(i)
	} else if v.CanUint() && fits && i >= 0 && !v.OverflowUint(uint64(i)) {
		v.SetUint(uint64(i))
	} else {
		d.bad(at, field, "%.40s is out of range", in.Token.Value)
	}
}

func (d *yamlDecoder) slice(n ast.Node, field string, at Position, v reflect.Value) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.bad(at, field, "is %s; a list is needed", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		f := field + "[" + strconv.Itoa(i) + "]"
		d.at[f] = positionOf(item)
		d.value(item, f, d.at[f], out.Index(i))
	}
	v.Set(out)
}

func (d *yamlDecoder) mapping(n ast.Node, field string, at Position, v reflect.Value) {
	pairs, ok := d.pairs(n, field, at)
	if !ok {
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(pairs))
	for _, p := range pairs {
		f := join(field, p.key)
		d.at[f] = p.at
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(p.value, f, p.at, elem)
		out.SetMapIndex(reflect.ValueOf(p.key).Convert(v.Type().Key()), elem)
	}
	v.Set(out)
}

func (d *yamlDecoder) object(n ast.Node, field string, at Position, v reflect.Value) {
	pairs, ok := d.pairs(n, field, at)
	if !ok {
		return
	}
	index, known := fieldsOf(v.Type())
	for _, p := range pairs {
		f := join(field, p.key)
		d.at[f] = p.at
		path, ok := index[p.key]
		if !ok {
			hint := "; known: " + strings.Join(known, ", ")
			if near := Nearest(p.key, known); near != "" {
				hint = "; did you mean " + near + "?"
			}
			d.bad(p.keyAt, f, "no such field%s", hint)
			continue
		}
		d.value(p.value, f, p.at, v.FieldByIndex(path))
	}
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

type yamlPair struct {
	key       string
	keyAt, at Position // at is the value's if it is a scalar, else the key's
	value     ast.Node
}

// pairs lists a mapping's keys and values, with what "<<" merges in last.
func (d *yamlDecoder) pairs(n ast.Node, field string, at Position) (pairs []yamlPair, ok bool) {
	m, ok := n.(ast.MapNode)
	if !ok || n.Type() == ast.AliasType {
		d.bad(at, field, "is %s; fields are needed", describe(n))
		return nil, false
	}
	seen := map[string]Position{}
	var merged []ast.Node
	for it := m.MapRange(); it.Next(); {
		if _, ok := it.Key().(*ast.MergeKeyNode); ok {
			merged = append(merged, it.Value())
			continue
		}
		p := yamlPair{key: keyText(it.Key()), keyAt: positionOf(it.Key()), value: it.Value()}
		if p.at = positionOf(p.value); isContainer(p.value) || p.value.Type() == ast.NullType || p.at == (Position{}) {
			p.at = p.keyAt
		}
		if first, ok := seen[p.key]; ok {
			d.bad(p.keyAt, join(field, p.key), "stands twice: first in line %d", first.Line)
			continue
		}
		seen[p.key] = p.keyAt
		pairs = append(pairs, p)
	}
	for _, n := range merged {
		for _, p := range d.merge(n, field) {
			if _, ok := seen[p.key]; !ok {
				seen[p.key] = p.keyAt
				pairs = append(pairs, p)
			}
		}
	}
	return pairs, true
}

// merge lists the pairs of what "<<" names: a mapping, or a list of them.
func (d *yamlDecoder) merge(n ast.Node, field string) (pairs []yamlPair) {
	at := positionOf(n)
	n, leave := d.resolve(n, field)
	defer leave()
	if n == nil {
		return nil
	}
	if seq, ok := n.(*ast.SequenceNode); ok {
		for _, item := range seq.Values {
			pairs = append(pairs, d.merge(item, field)...)
		}
		return pairs
	}
	pairs, _ = d.pairs(n, field, at)
	return pairs
}

func keyText(k ast.MapKeyNode) string {
	switch k := k.(type) {
	case *ast.StringNode:
		return k.Value
	case *ast.MappingKeyNode:
		if s, ok := k.Value.(*ast.StringNode); ok {
			return s.Value
		}
	}
	return k.GetToken().Value
}

func isContainer(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.AnchorNode:
		return isContainer(n.Value)
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		return true
	}
	return false
}

// describe says what a node is, for a person.
func describe(n ast.Node) string {
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a group of fields"
	case *ast.SequenceNode:
		return "a list"
	case *ast.StringNode:
		return fmt.Sprintf("the text %.40q", n.Value)
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.NullNode:
		return "empty"
	}
	return fmt.Sprintf("%.40s", n.GetToken().Value)
}

// fieldsOf maps the names of a struct's fields, by their json tags and with those of
// embedded structs, to their places, and lists the names in order.
func fieldsOf(t reflect.Type) (index map[string][]int, names []string) {
	index = map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" || f.Anonymous && name == "" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		index[name] = f.Index
		names = append(names, name)
	}
	return index, names
}
