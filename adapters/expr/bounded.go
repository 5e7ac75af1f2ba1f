package expr

import (
	"context"
	"slices"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"

	"github.com/jointcloud/pcm"
)

// NewBounded makes an environment for expressions of strangers: an evaluation may
// cost no more than cost, and there are none of this package's functions, since what
// those do to long texts costs more than CEL reckons.
func NewBounded(cost uint64, vars ...string) (*Env, error) {
	opts := options(vars)
	env, err := cel.NewEnv(opts...)
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't make an environment for expressions: %w", err)
	}
	return &Env{cel: env, vars: vars, cost: cost}, nil
}

// EvalCost is [Expr.Eval] of CEL that tells as well what it cost: all that it may
// cost if it failed.
func (x *Expr) EvalCost(ctx context.Context, vars map[string]any) (any, uint64, error) {
	out, details, err := x.program.ContextEval(ctx, vars)
	if err != nil {
		return nil, x.cost, pcm.Errorf(pcm.Invalid, "expression %q: %w", short(x.source), err)
	}
	cost := x.cost
	if details != nil && details.ActualCost() != nil {
		cost = *details.ActualCost()
	}
	v, err := plain(out)
	if err != nil {
		return nil, x.cost, pcm.Errorf(pcm.Invalid, "expression %q: %w", short(x.source), err)
	}
	return v, cost, nil
}

// Use is one mention of a variable: its name and the fields that are selected of it,
// as far as they are written out. In a.b["c"] it is a, b.
type Use struct {
	Path   []string
	Tested bool // whether there is such a field is all that is asked: has(a.b), a.?b
}

// Uses lists what a CEL expression mentions, in the order in which it stands there.
func (x *Expr) Uses() []Use {
	if x.ast == nil {
		return nil
	}
	var uses []Use
	within := map[int64]bool{} // parts of a longer path
	root := ast.NavigateAST(x.ast.NativeRep())
	local := map[string]bool{}
	for _, e := range ast.MatchDescendants(root, ast.KindMatcher(ast.ComprehensionKind)) {
		c := e.AsComprehension()
		local[c.IterVar()], local[c.IterVar2()], local[c.AccuVar()] = true, true, true
	}
	ast.PreOrderVisit(root, ast.NewExprVisitor(func(e ast.Expr) {
		if within[e.ID()] {
			return
		}
		path, tested := []string(nil), false
		for at := e; ; {
			switch at.Kind() {
			case ast.SelectKind:
				within[at.ID()] = true
				s := at.AsSelect()
				path, tested = append(path, s.FieldName()), tested || s.IsTestOnly()
				at = s.Operand()
				continue
			case ast.CallKind:
				c := at.AsCall()
				if c.FunctionName() == "_?._" && len(c.Args()) == 2 && c.Args()[1].Kind() == ast.LiteralKind {
					within[at.ID()] = true
					field, _ := c.Args()[1].AsLiteral().Value().(string)
					path, tested = append(path, field), true
					at = c.Args()[0]
					continue
				}
			case ast.IdentKind:
				within[at.ID()] = true
				if name := at.AsIdent(); !local[name] && slices.Contains(x.vars, name) {
					path = append(path, name)
					slices.Reverse(path)
					uses = append(uses, Use{path, tested})
				}
			}
			return
		}
	}))
	return uses
}
