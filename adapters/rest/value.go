package rest

import (
	"context"
	"strconv"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// whole is a value as an exit code.
func whole(v any) (int64, bool) {
	n, ok := number64(v)
	if s, text := v.(string); text {
		var err error
		n, err = strconv.ParseInt(s, 10, 32)
		ok = err == nil
	}
	return n, ok && n >= 0 && n < 1<<31
}

var errNothing = pcm.Errorf(pcm.NotFound, "there is no such value")

// eval is an expression's value as a number that is not negative.
func eval(ctx context.Context, given bool, x description.Expression, vars map[string]any) (float64, error) {
	if !given {
		return 0, errNothing
	}
	v, err := x.Eval(ctx, vars)
	if err != nil {
		return 0, err
	}
	f, err := strconv.ParseFloat(expr.Text(v), 64)
	if err != nil || !(f >= 0) {
		return 0, errNothing
	}
	return f, nil
}
