package api

import (
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
)

// List is a page of a list.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next" doc:"Pass it as cursor to get the next page; empty when this is the last."`
}

// Page says which part of a list is wanted.
type Page struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"Most items to return."`
	Cursor string `query:"cursor" maxLength:"512" doc:"What the previous page had as next."`
}

// paginate cuts a page out of all. The cursor is the ID of the last item that
// the client has, so that items which appear ahead of it move nothing.
func paginate[T any](all []T, id func(T) string, p Page) (List[T], error) {
	from := 0
	if p.Cursor != "" {
		at := slices.IndexFunc(all, func(v T) bool { return id(v) == p.Cursor })
		if at < 0 {
			return List[T]{}, pcm.Errorf(pcm.Conflict, "the item %q, where this page would start, is no longer in the list: start again without a cursor", p.Cursor)
		}
		from = at + 1
	}
	to := min(from+p.Limit, len(all))
	l := List[T]{Items: append(make([]T, 0, to-from), all[from:to]...)}
	if to < len(all) {
		l.Next = id(all[to-1])
	}
	return l, nil
}

// resolve finds the one ID that a person meant by what they typed: the whole ID,
// or any beginning of it, with or without the kind ahead ("job-x7k2mq4w", "x7k2").
func resolve[T ~string](kind, typed string, ids []T) (T, error) {
	prefix := kind + "-"
	want := typed
	if !strings.HasPrefix(want, prefix) {
		want = prefix + want
	}
	var found []T
	for _, id := range ids {
		if string(id) == want {
			return id, nil
		}
		if typed != "" && want != prefix && strings.HasPrefix(string(id), want) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return "", pcm.Errorf(pcm.NotFound, "there is no %s %q here; see 'pcm %s'", noun(kind), typed, map[string]string{"job": "job list", "trd": "trades"}[kind])
	case 1:
		return found[0], nil
	}
	var names []string
	for _, id := range found[:min(len(found), 8)] {
		names = append(names, string(id))
	}
	if len(found) > len(names) {
		names = append(names, "…")
	}
	return "", pcm.Errorf(pcm.Invalid, "%q could be any of %d: %s; give more of the ID", typed, len(found), strings.Join(names, ", "))
}

func noun(kind string) string {
	if kind == "trd" {
		return "trade"
	}
	return kind
}
