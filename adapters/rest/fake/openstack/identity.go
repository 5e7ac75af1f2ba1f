package openstack

import (
	"encoding/json"
	"io"
	"net/http"
	"time"
)

type token struct {
	expires time.Time
	scoped  bool // to the project; others have no catalogue
}

// named is a thing of Keystone's by name or by ID. This cloud's IDs are its names with "id-" before them.
type named struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Domain *named `json:"domain"`
}

func (n *named) is(name string) bool {
	return n != nil && (n.Name == name && name != "" || n.ID == idOf(name))
}

// idOf is "default" for the domain that every Keystone has.
func idOf(name string) string {
	if name == "Default" {
		return "default"
	}
	return "id-" + name
}

func (c *Cloud) identity(w http.ResponseWriter, r *http.Request) {
	write(w, http.StatusOK, map[string]any{"version": map[string]any{
		"id": "v3.14", "status": "stable", "links": []any{map[string]string{"rel": "self", "href": base(r) + "/identity/v3/"}},
	}}, nil)
}

// issue is the log-in. Keystone tells nobody what was wrong.
func (c *Cloud) issue(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Auth struct {
			Identity struct {
				Methods  []string
				Password struct {
					User struct {
						named
						Password string
					}
				}
				Application struct {
					ID     string
					Name   string
					Secret string
				} `json:"application_credential"`
			}
			Scope *struct{ Project *named }
		}
	}
	refuse := func(status int, title, message string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": status, "title": title, "message": message}})
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&in); err != nil || len(in.Auth.Identity.Methods) != 1 {
		refuse(http.StatusBadRequest, "Bad Request", "Invalid input for field 'auth'")
		return
	}
	method := in.Auth.Identity.Methods[0]
	ok, scoped := false, false
	switch method {
	case "password":
		u := in.Auth.Identity.Password.User
		ok = u.is(c.o.User) && u.Password == c.o.Password && (u.ID != "" || u.Domain.is(c.o.Domain))
		if in.Auth.Scope != nil && in.Auth.Scope.Project != nil {
			p := in.Auth.Scope.Project
			scoped = p.is(c.o.Project) && (p.ID != "" || p.Domain.is(c.o.Domain))
			ok = ok && scoped
		}
	case "application_credential":
		a := in.Auth.Identity.Application
		ok = c.o.AppID != "" && a.ID == c.o.AppID && a.Secret == c.o.AppSecret && in.Auth.Scope == nil
		scoped = true
	}
	if !ok {
		refuse(http.StatusUnauthorized, "Unauthorized", "The request you have made requires authentication.")
		return
	}
	now := time.Now()
	t := token{expires: now.Add(c.o.TokenTTL), scoped: scoped}
	text := "gAAAAA" + newID() + newID()
	c.mu.Lock()
	for text, t := range c.tokens {
		if now.After(t.expires) {
			delete(c.tokens, text)
		}
	}
	full := len(c.tokens) >= maxTokens
	if !full {
		c.tokens[text] = t
	}
	c.mu.Unlock()
	if full {
		refuse(http.StatusServiceUnavailable, "Service Unavailable", "Too many tokens.")
		return
	}
	const form = "2006-01-02T15:04:05.000000Z"
	body := map[string]any{
		"methods": []string{method}, "issued_at": now.UTC().Format(form), "expires_at": t.expires.UTC().Format(form),
		"user": map[string]any{"id": idOf(c.o.User), "name": c.o.User, "domain": map[string]string{"id": idOf(c.o.Domain), "name": c.o.Domain}},
	}
	if scoped {
		body["project"] = map[string]any{"id": idOf(c.o.Project), "name": c.o.Project, "domain": map[string]string{"id": idOf(c.o.Domain), "name": c.o.Domain}}
		body["roles"] = []any{map[string]string{"id": "id-member", "name": "member"}}
		body["catalog"] = c.catalogue(r)
	}
	w.Header().Set("X-Subject-Token", text)
	w.Header().Set("Vary", "X-Auth-Token")
	write(w, http.StatusCreated, map[string]any{"token": body}, nil)
}

// catalogue names the services, each at several interfaces. Only the public ones lead here.
func (c *Cloud) catalogue(r *http.Request) []any {
	service := func(kind, name, path string) map[string]any {
		var endpoints []any
		for _, i := range []struct{ name, url string }{
			{"internal", "http://controller.invalid" + path}, {"public", base(r) + path}, {"admin", "http://controller.invalid" + path},
		} {
			endpoints = append(endpoints, map[string]string{
				"id": idOf(name + "-" + i.name), "interface": i.name, "region": c.o.Region, "region_id": c.o.Region, "url": i.url,
			})
		}
		endpoints = append(endpoints, map[string]string{
			"id": idOf(name + "-elsewhere"), "interface": "public", "region": "Elsewhere", "region_id": "Elsewhere", "url": "http://elsewhere.invalid" + path,
		})
		return map[string]any{"id": idOf(name), "type": kind, "name": name, "endpoints": endpoints}
	}
	return []any{service("identity", "keystone", "/identity"), service("compute", "nova", "/compute/v2.1")}
}

func (c *Cloud) known(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.tokens[text]
	return ok && t.scoped && time.Now().Before(t.expires)
}

// LogOut forgets all tokens, as the loss of Keystone's keys does.
func (c *Cloud) LogOut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.tokens)
}
