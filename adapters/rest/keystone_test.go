package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// guarded is a fake Nova that takes tokens of a real Keystone.
type guarded struct {
	nova  http.Handler
	k     *server.Keystone
	inner string // a token that the fake takes

	mu   sync.Mutex
	good map[string]bool // tokens, as Keystone said when they were shown first
	last string          // the last token shown
	bad  int             // how often one was shown that isn't valid
}

// ask has Keystone asked again for a token.
func (g *guarded) ask(token string) { g.mu.Lock(); delete(g.good, token); g.mu.Unlock() }

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("X-Auth-Token")
	g.mu.Lock()
	good, known := g.good[token]
	if !known {
		good = token != "" && g.k.Valid(r.Context(), token)
		g.good[token] = good
	}
	g.last = token
	if !good {
		g.bad++
	}
	g.mu.Unlock()
	if !good {
		w.Header().Set("Www-Authenticate", `Keystone uri="`+g.k.URL+`"`)
		http.Error(w, `{"error": {"code": 401, "title": "Unauthorized"}}`, http.StatusUnauthorized)
		return
	}
	r = r.Clone(r.Context())
	r.Header.Set("X-Auth-Token", g.inner)
	g.nova.ServeHTTP(w, r)
}

// The shipped description logs in at a real Keystone: it finds the cloud in its
// catalogue, runs a task with its tokens, and takes a new one when one is revoked.
func TestKeystone(t *testing.T) {
	if !require.Named("keystone") {
		t.Skip("KEYSTONE IS NOT TESTED HERE: PCM_TEST_REQUIRE does not name it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	k, err := server.RunKeystone(ctx)
	require.Server(t, "keystone", err)
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	c := startOpenStack(t)
	body, err := json.Marshal(map[string]any{"auth": map[string]any{"identity": map[string]any{
		"methods": []string{"application_credential"}, "application_credential": map[string]any{"id": "0123abcd", "secret": "battery staple"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	said := httptest.NewRecorder()
	c.host.handler.ServeHTTP(said, httptest.NewRequest("POST", "/identity/v3/auth/tokens", bytes.NewReader(body)))
	g := &guarded{nova: c.host.handler, k: k, inner: said.Header().Get("X-Subject-Token"), good: map[string]bool{}}
	if g.inner == "" {
		t.Fatalf("the fake Nova gives no token: %s", said.Body)
	}
	front := newHost(t, g)
	app, secret, err := k.User(ctx, "seller", "a password", "peers-of-keystone")
	if err == nil {
		err = k.Offer(ctx, "compute", front.url()+"/compute/v2.1")
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := func(settings, values map[string]string) Config {
		cfg := c.cfg
		cfg.Settings = map[string]string{"identity": k.URL, "image": c.cfg.Settings["image"], "store": c.cfg.Settings["store"], "bucket": "tasks"}
		for n, v := range settings {
			cfg.Settings[n] = v
		}
		values["access_key"], values["secret_key"] = "AK", "store secret"
		cfg.Secrets = secrets(t, values)
		return cfg
	}
	ways := map[string]Config{
		"password":   cfg(map[string]string{"user": "seller", "project": "peers-of-keystone"}, map[string]string{"password": "a password"}),
		"credential": cfg(map[string]string{"app_id": app}, map[string]string{"app_secret": secret}),
	}
	for name, cfg := range ways {
		t.Run(name, func(t *testing.T) {
			cfg.Instance = t.Name()
			ins := boxed(t, cfg)
			if pools, err := ins.Adapter.Pools(ctx); err != nil || len(pools) != 4 {
				t.Fatalf("%v, %v", pools, err)
			}
			task := adaptertest.NewTask()
			task.Limit, task.Deadline = 20*time.Minute, adapters.Now().Add(20*time.Minute)
			steps(t, &task, "out", "hello", "sleep", "10m")
			if err := ins.Adapter.Start(ctx, task); err != nil {
				t.Fatal(err)
			}
			if _, err := adaptertest.Wait(ctx, ins.Adapter, task.Key, adapters.Running); err != nil {
				t.Fatal(err)
			}
			g.mu.Lock()
			token, before := g.last, g.bad
			g.mu.Unlock()
			if err := k.Revoke(ctx, token); err != nil {
				t.Fatal(err)
			}
			g.ask(token)
			until(t, "a token that was revoked is refused, and another one is shown", func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return g.bad > before && g.last != token && g.good[g.last]
			})
			if err := ins.Adapter.Stop(ctx, task.Key, 0, "enough"); err != nil {
				t.Fatal(err)
			}
			st, err := adaptertest.Wait(ctx, ins.Adapter, task.Key, adapters.Ended)
			if err != nil || st.Outcome != pcm.OutcomeStopped || st.Reason != "enough" {
				t.Errorf("ended as %+v, %v", st, err)
			}
		})
	}
	wrong := cfg(map[string]string{"user": "seller", "project": "peers-of-keystone"}, map[string]string{"password": "another one"})
	if _, err := List(ctx, wrong); pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "secret password (file:") {
		t.Errorf("with a wrong password: %v", err)
	}
	elsewhere := ways["password"]
	elsewhere.Settings["region"] = "Nowhere"
	if _, err := List(ctx, elsewhere); pcm.ErrorCode(err) != pcm.NotFound || !strings.Contains(err.Error(), "compute/public/RegionOne") {
		t.Errorf("in a region that isn't there: %v", err)
	}
}
