// Package expr evaluates the expressions that people write in descriptions of
// back ends and in rules: CEL (cel.dev) with a few functions more, templates with
// ${…} around CEL, and JSONPath (RFC 9535). Nobody's expression can hang or fill
// the process: each has a bound of its cost.
package expr

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"

	"github.com/jointcloud/pcm"
)

const (
	// MaxSource is the longest expression, in bytes.
	MaxSource = 4 << 10
	// MaxCost bounds an evaluation, in CEL's units: about one a step.
	MaxCost = 200_000
)

// Env is what expressions of one kind may speak of.
type Env struct {
	cel  *cel.Env
	vars []string
	cost uint64
}

// New makes an environment with variables of any type.
func New(vars ...string) (*Env, error) {
	env, err := cel.NewEnv(append(options(vars), functions()...)...)
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't make an environment for expressions: %w", err)
	}
	return &Env{env, vars, MaxCost}, nil
}

func options(vars []string) []cel.EnvOption {
	opts := []cel.EnvOption{
		cel.OptionalTypes(), cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(MaxSource), cel.ParserRecursionLimit(64),
	}
	for _, v := range vars {
		opts = append(opts, cel.Variable(v, cel.DynType))
	}
	return opts
}

// Expr is a compiled expression. It is safe for concurrent use.
type Expr struct {
	source  string
	ast     *cel.Ast
	program cel.Program
	vars    []string
	cost    uint64    // most that an evaluation may cost
	path    *jsonPath // instead of CEL
}

// Compile checks an expression. The error has code Invalid, and says where in the source it is.
func (e *Env) Compile(source string) (*Expr, error) {
	if len(source) > MaxSource {
		return nil, pcm.Errorf(pcm.Invalid, "the expression has %d bytes, over the bound of %d", len(source), MaxSource)
	}
	if strings.TrimSpace(source) == "" {
		return nil, pcm.Errorf(pcm.Invalid, "the expression is empty")
	}
	ast, issues := e.cel.Compile(source)
	if err := issues.Err(); err != nil {
		first := issues.Errors()[0]
		return nil, pcm.Errorf(pcm.Invalid, "in expression %q, at %d:%d: %s", short(source), first.Location.Line(), first.Location.Column()+1, first.Message)
	}
	program, err := e.cel.Program(ast, cel.CostLimit(e.cost), cel.InterruptCheckFrequency(100))
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "in expression %q: %w", short(source), err)
	}
	return &Expr{source: source, ast: ast, program: program, vars: e.vars, cost: e.cost}, nil
}

// Source is the expression as it was written.
func (x *Expr) Source() string { return x.source }

// AST is the checked syntax tree of a CEL expression; nil for JSONPath.
func (x *Expr) AST() *cel.Ast { return x.ast }

// Eval gives a plain value: nil, bool, int64, uint64, float64, string, []byte,
// time.Duration, time.Time, []any or map[string]any. Variables that are not given
// are unknown names to the expression. The error has code Invalid: what is missing,
// or that it costs too much.
func (x *Expr) Eval(ctx context.Context, vars map[string]any) (any, error) {
	if x.path != nil {
		return x.path.eval(vars)
	}
	out, _, err := x.program.ContextEval(ctx, vars)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "expression %q: %w", short(x.source), err)
	}
	v, err := plain(out)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "expression %q: %w", short(x.source), err)
	}
	return v, nil
}

// Bool is Eval of what must be true or false.
func (x *Expr) Bool(ctx context.Context, vars map[string]any) (bool, error) {
	v, err := x.Eval(ctx, vars)
	if err != nil {
		return false, err
	}
	b, ok := v.(bool)
	if !ok {
		return false, pcm.Errorf(pcm.Invalid, "expression %q gives %s, not true or false", short(x.source), Kind(v))
	}
	return b, nil
}

// Never names the type of what the expression gives, if its text alone shows that
// it is never true or false; "" if it may be.
func (x *Expr) Never() string {
	if x.ast == nil {
		return ""
	}
	switch x.ast.OutputType().Kind() {
	case types.IntKind, types.UintKind, types.DoubleKind:
		return "a number"
	case types.StringKind:
		return "a text"
	case types.ListKind:
		return "a list"
	case types.MapKind, types.StructKind:
		return "a map"
	case types.BytesKind, types.DurationKind, types.TimestampKind, types.TypeKind:
		return "a value of type " + x.ast.OutputType().String()
	case types.NullTypeKind:
		return "nothing"
	}
	return ""
}

// Kind names the type of a plain value for a person.
func Kind(v any) string {
	switch v.(type) {
	case nil:
		return "nothing"
	case bool:
		return "true or false"
	case int64, uint64, float64:
		return "a number"
	case string:
		return "a text"
	case []any:
		return "a list"
	case map[string]any:
		return "a map"
	}
	return fmt.Sprintf("a %T", v)
}

// Text is a plain value as it stands in a text.
func Text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []byte:
		return string(v)
	case []any, map[string]any:
		return encode(v)
	}
	return fmt.Sprint(v)
}

func plain(v ref.Val) (any, error) {
	switch v := v.(type) {
	case *types.Optional:
		if !v.HasValue() {
			return nil, nil
		}
		return plain(v.GetValue())
	case types.Null:
		return nil, nil
	case types.Error:
		return nil, v
	case types.Bool, types.Int, types.Uint, types.Double, types.String, types.Bytes, types.Duration, types.Timestamp:
		return v.Value(), nil
	}
	return collection(v)
}
