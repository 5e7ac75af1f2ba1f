package rest

import (
	"cmp"
	"context"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// caller is who sends requests: a client.Client, or what shows them only.
type caller interface {
	Do(ctx context.Context, r client.Request) (*client.Response, error)
}

// backend is a back end as its description and its site have it.
type backend struct {
	cfg      Config
	name     string
	d        *description.Description
	settings map[string]any
	secrets  *client.Secrets
	http     *client.Client
	do       caller
	store    *client.Store // nil: none that speaks S3
	states   states
	scripted bool // jobs run task.script
	placed   bool // jobs are found by their place in an array
	linked   bool // jobs run what task.script_url leads to …
	// … if they are made with others.
	linkedMany bool
	poll       time.Duration // between looks
	timeout    time.Duration // of one call
	rate       float64

	mu      sync.Mutex
	servers map[string]string // by name, as far as they are known
	pools   []place
	pooled  time.Time     // when the look at them was begun
	missed  time.Time     // when the last one was that failed
	fault   error         // of it
	flaw    error         // why the last look left something out
	looking chan struct{} // held by who looks at pools
	seen    time.Time     // when the last look was begun that the back end has answered
	unheard int           // calls in a row that it has left without an answer
	answers bool          // the last call was answered, if only that something is wrong
	absent  *absence
	tell    func(*absence) // nil: nobody; b.mu is held
}

// open reads the description and checks it against what the site says. Nothing is sent.
func open(ctx context.Context, cfg Config, trace func(client.Exchange)) (*backend, error) {
	d, err := cfg.Load()
	if err != nil {
		return nil, err
	}
	return connect(ctx, cfg, d, trace)
}

func connect(ctx context.Context, cfg Config, d *description.Description, trace func(client.Exchange)) (*backend, error) {
	if err := cfg.Check(d); err != nil {
		return nil, err
	}
	b := &backend{
		cfg: cfg, d: d, name: cmp.Or(cfg.Name, d.Name), settings: map[string]any{}, servers: map[string]string{}, looking: make(chan struct{}, 1),
		states: newStates(d.States), scripted: usesScript(d),
		poll: cmp.Or(cfg.Poll, time.Duration(d.Limits.Poll), defaultPoll),
		rate: cmp.Or(cfg.Rate, d.Limits.Rate, defaultRate), timeout: cmp.Or(time.Duration(d.Limits.Timeout), defaultTimeout),
	}
	b.placed = reads(&d.Find, "task.array")
	if m := d.Create.Many; m != nil {
		one := *d
		one.Create.Many = nil
		b.linked, b.linkedMany = reads(&one, "task.script_url"), reads(m, "task.script_url")
	} else {
		b.linked = reads(d, "task.script_url")
	}
	for k, s := range d.Settings {
		b.settings[k] = cmp.Or(cfg.Settings[k], s.Default)
	}
	var err error
	if b.secrets, err = client.NewSecrets(cfg.Secrets); err != nil {
		return nil, err
	}
	vars := map[string]any{"settings": b.settings}
	var origins []string
	for _, name := range slices.Sorted(maps.Keys(d.Servers)) {
		base, err := d.Servers[name].Text(ctx, vars)
		if err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "the address of server %s: %w", name, err)
		}
		if base = strings.TrimSuffix(base, "/"); base == "" {
			continue
		}
		u, err := url.Parse(base)
		if err != nil || u.Host == "" {
			return nil, pcm.Errorf(pcm.Invalid, "the address of server %s is not of the form https://HOST/PATH: look at the settings of %s", name, b.name)
		}
		b.servers[name] = base
		origins = append(origins, u.Scheme+"://"+u.Host)
	}
	login, err := b.login(ctx, vars)
	if err != nil {
		return nil, err
	}
	cc := client.Config{
		Origins: origins, Login: login, Secrets: b.secrets, Rate: b.rate,
		Burst:   cmp.Or(d.Limits.Burst, defaultBurst),
		Retry:   client.Retry{Tries: cmp.Or(d.Limits.Tries, defaultTries)},
		Timeout: b.timeout, UserAgent: "pcm",
		AllowPrivate: cfg.AllowPrivate, CA: cfg.CA, Trace: trace,
	}
	if b.http, err = client.New(cc); err != nil {
		return nil, err
	}
	b.do = b.http
	b.store, err = b.openStore(ctx, cc, vars)
	return b, err
}

// server is the base URL of one of the back end's servers. That of "api" may come
// from the catalogue of the log-in.
func (b *backend) server(ctx context.Context, name string) (string, error) {
	name = cmp.Or(name, "api")
	b.mu.Lock()
	base := b.servers[name]
	b.mu.Unlock()
	if base != "" {
		return base, nil
	}
	if l := b.d.Login; l.Kind == "keystone" && l.Service != "" && name == "api" {
		region, err := l.Region.Text(ctx, map[string]any{"settings": b.settings})
		if err != nil {
			return "", err
		}
		if base, err = b.http.Endpoint(ctx, l.Service, "public", region); err != nil {
			return "", err
		}
		b.mu.Lock()
		b.servers[name] = base
		b.mu.Unlock()
		return base, nil
	}
	return "", pcm.Errorf(pcm.Invalid, "the description of %s has no server %q", b.name, name)
}

// login is the description's log-in as the client takes it.
func (b *backend) login(ctx context.Context, vars map[string]any) (client.Login, error) {
	l := b.d.Login
	var fault error
	text := func(t description.Template) string {
		s, err := t.Text(ctx, vars)
		fault = cmp.Or(fault, err)
		return s
	}
	out := client.Login{
		Kind: client.LoginKind(cmp.Or(l.Kind, "none")), Header: l.Header, Prefix: l.Prefix,
		Token: cmp.Or(l.Token, l.Key), User: text(l.Username), Password: l.Password, URL: text(l.URL), ClientID: text(l.ClientID), Scopes: l.Scopes,
		UserDomain: text(l.Domain), ProjectDomain: text(l.Domain), Project: text(l.Project), Region: text(l.Region), Service: l.Service,
		AccessKey: l.AccessKey, SecretKey: l.SecretKey, SessionToken: l.Session,
	}
	if out.SessionToken != "" && b.cfg.Secrets[out.SessionToken] == "" {
		out.SessionToken = "" // the site's keys are no temporary ones
	}
	switch {
	case l.Kind == "api-key" && l.In == "query":
		out.Query = l.As
	case l.Kind == "api-key":
		out.Header = l.As
	case l.Kind == "oauth2":
		out.ClientSecret = l.Secret
	case l.Kind == "keystone":
		out.Credential, out.CredentialSecret = text(l.AppID), l.Secret
	case l.Kind == "bearer" && l.Request != nil:
		req, err := b.request(ctx, l.Request, vars)
		if err != nil {
			return out, pcm.Errorf(pcm.Invalid, "login.request: %w", err)
		}
		out.Request, out.Find = &req, b.token
	}
	return out, fault
}

// token reads the answer of a log-in.
func (b *backend) token(resp *client.Response) (string, time.Duration, error) {
	ctx, l := context.Background(), b.d.Login
	a, err := b.parse(&description.Call{Request: *l.Request}, resp)
	if err != nil {
		return "", 0, err
	}
	vars := a.in(map[string]any{"settings": b.settings})
	token, err := b.text(ctx, l.Find, vars)
	if err != nil || token == "" {
		return "", 0, pcm.Errorf(pcm.Refused, "the answer to the log-in holds no token where login.find looks for it")
	}
	life, err := eval(ctx, l.Expires.Given(), l.Expires, vars)
	if err != nil {
		life = 0
	}
	return token, time.Duration(min(life, 1e8) * float64(time.Second)), nil
}

// usesScript tells whether jobs run the text that this package makes.
func usesScript(d *description.Description) bool {
	var holds func(v any) bool
	holds = func(v any) bool {
		switch v := v.(type) {
		case string:
			return strings.Contains(v, "task.script")
		case []any:
			return slices.ContainsFunc(v, holds)
		case map[string]any:
			for _, e := range v {
				if holds(e) {
					return true
				}
			}
		}
		return false
	}
	for _, l := range d.Let {
		if holds(l.Value.Raw()) {
			return true
		}
	}
	requests := []description.Request{d.Create.Request}
	if m := d.Create.Many; m != nil {
		if requests = append(requests, m.Request); holds(m.Each.Raw()) {
			return true
		}
	}
	for _, s := range d.Create.Before {
		requests = append(requests, s.Request)
	}
	for _, r := range requests {
		if holds(r.Body.Raw()) {
			return true
		}
		for _, t := range r.Form {
			if holds(t.Raw()) {
				return true
			}
		}
	}
	return false
}
