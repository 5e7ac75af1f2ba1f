package client

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

const maxEndpoints = 2000 // of a catalogue

// keystone gets tokens from OpenStack Identity v3, with a catalogue of services.
type keystone struct {
	c *Client
	l Login

	mu      sync.Mutex
	catalog []endpoint
}

type endpoint struct{ service, iface, region, url string }

func (g *keystone) describe() string {
	if g.l.Credential != "" {
		return "application credential " + g.l.Credential + " and secret " + g.c.cfg.Secrets.describe(g.l.CredentialSecret)
	}
	return "user " + g.l.User + " and secret " + g.c.cfg.Secrets.describe(g.l.Password)
}

// body is what is posted to /auth/tokens.
func (g *keystone) body() (any, error) {
	type object = map[string]any
	if g.l.Credential != "" {
		secret, err := g.c.cfg.Secrets.Get(g.l.CredentialSecret)
		if err != nil {
			return nil, err
		}
		return object{"auth": object{"identity": object{
			"methods":                []string{"application_credential"},
			"application_credential": object{"id": g.l.Credential, "secret": secret},
		}}}, nil
	}
	password, err := g.c.cfg.Secrets.Get(g.l.Password)
	if err != nil {
		return nil, err
	}
	auth := object{"identity": object{
		"methods": []string{"password"},
		"password": object{"user": object{
			"name": g.l.User, "password": password, "domain": object{"name": orDefault(g.l.UserDomain, "Default")},
		}},
	}}
	if g.l.ProjectID != "" {
		auth["scope"] = object{"project": object{"id": g.l.ProjectID}}
	} else if g.l.Project != "" {
		auth["scope"] = object{"project": object{"name": g.l.Project, "domain": object{"name": orDefault(g.l.ProjectDomain, "Default")}}}
	}
	return object{"auth": auth}, nil
}

func (g *keystone) token(ctx context.Context) (token, error) {
	body, err := g.body()
	if err != nil {
		return token{}, err
	}
	resp, err := g.c.loginCall(ctx, Request{Method: http.MethodPost, URL: strings.TrimSuffix(g.l.URL, "/") + "/auth/tokens", Body: body})
	if err != nil {
		return token{}, err
	}
	v, err := resp.JSON()
	if err != nil {
		return token{}, err
	}
	t := token{value: resp.Header.Get("X-Subject-Token")}
	if text, ok := at(v, "token.expires_at").(string); ok {
		if t.expires, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return token{}, pcm.Errorf(pcm.Unavailable, "the log-in gave a token that expires at %.40q, which is no time", text)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.catalog = readCatalog(at(v, "token.catalog"))
	return t, nil
}

func readCatalog(v any) []endpoint {
	var all []endpoint
	services, _ := v.([]any)
	for _, s := range services {
		service, _ := at(s, "type").(string)
		endpoints, _ := at(s, "endpoints").([]any)
		for _, e := range endpoints {
			one := endpoint{service: service}
			one.iface, _ = at(e, "interface").(string)
			one.url, _ = at(e, "url").(string)
			if one.region, _ = at(e, "region_id").(string); one.region == "" {
				one.region, _ = at(e, "region").(string)
			}
			if all = append(all, one); len(all) >= maxEndpoints {
				return all
			}
		}
	}
	return all
}

func (g *keystone) find(service, iface, region string) (string, error) {
	iface = orDefault(iface, "public")
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.catalog {
		if e.service == service && e.iface == iface && (region == "" || e.region == region) {
			return e.url, nil
		}
	}
	return "", pcm.Errorf(pcm.NotFound, "the catalogue at %s has no %s interface of service %q in region %q: it has %s", g.l.URL, iface, service, region, g.names())
}

// names lists some of what there is, for messages.
func (g *keystone) names() string {
	var some []string
	for _, e := range g.catalog[:min(len(g.catalog), 12)] {
		some = append(some, e.service+"/"+e.iface+"/"+e.region)
	}
	if len(some) == 0 {
		return "none: a token needs a project to have one"
	}
	return pcm.Clean(strings.Join(some, ", "), maxWords)
}
