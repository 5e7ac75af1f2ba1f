package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm/node/api"
)

func TestSayWhyNot(t *testing.T) {
	for _, c := range []struct {
		what  string
		wait  time.Duration
		of    api.CellHealth
		wants string
	}{
		{"soon taken in", patience - time.Millisecond, api.CellHealth{}, ""},
		{"nobody leads", patience, api.CellHealth{Plan: "nothing can be decided now"}, "still waiting: nothing can be decided now"},
		{"slow", patience, api.CellHealth{MaxVoters: 3}, "still waiting for the cell"},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				a := &app{errOut: &out, getenv: func(string) string { return "" }}
				quiet := a.sayWhyNot(t.Context(), func(context.Context) (api.CellHealth, error) { return c.of, nil })
				time.Sleep(c.wait)
				synctest.Wait()
				quiet()
				if got := out.String(); (got == "") != (c.wants == "") || !strings.Contains(got, c.wants) || strings.Count(got, "\n") > 1 {
					t.Errorf("it says %q", got)
				}
			})
		})
	}
}
