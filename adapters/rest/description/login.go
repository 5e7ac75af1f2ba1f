package description

import (
	"reflect"
	"slices"
	"strings"
)

// Logins are the kinds of log-in there are, by name: what each needs. Fields with a
// ? may be missing; a | b means one of both.
var Logins = map[string]string{
	"none":     "",
	"bearer":   "token|request find? expires?",
	"basic":    "username password",
	"api-key":  "key in as",
	"oauth2":   "url client_id secret scopes?",
	"keystone": "url username|app_id password|secret domain? project? region? service?",
	"aws":      "access_key secret_key session? region service",
	"huawei":   "access_key secret_key session?",
}

// LoginKinds lists their names in order.
func LoginKinds() []string { return sorted(Logins) }

// secretFields are the fields of Login that name a secret.
var secretFields = []string{"token", "password", "key", "access_key", "secret_key", "session", "secret"}

// login checks that the fields of the log-in fit its kind, and that its secrets are declared.
func (c *compiler) login(d *Description) {
	kind := d.Login.Kind
	if kind == "" {
		kind = "none"
	}
	needs, ok := Logins[kind]
	if !ok {
		c.add("$.login.kind", "%q is none of %s", kind, strings.Join(LoginKinds(), ", "))
		return
	}
	given := map[string]bool{}
	v := reflect.ValueOf(d.Login)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		given[name] = !v.Field(i).IsZero()
		if slices.Contains(secretFields, name) && given[name] {
			c.secret("$.login."+name, d, v.Field(i).String())
		}
	}
	allowed := []string{"kind"}
	for _, need := range strings.Fields(needs) {
		need, optional := strings.CutSuffix(need, "?")
		choice := strings.Split(need, "|")
		allowed = append(allowed, choice...)
		if !optional && !slices.ContainsFunc(choice, func(name string) bool { return given[name] }) {
			c.add("$.login", "a log-in of kind %s needs %s", kind, strings.Join(choice, " or "))
		}
	}
	for _, name := range sorted(given) {
		if given[name] && !slices.Contains(allowed, name) {
			c.add("$.login."+name, "it means nothing for a log-in of kind %s", kind)
		}
	}
	if d.Login.Request != nil && !d.Login.Find.Given() {
		c.add("$.login.request", "what the token is in the answer must be said by login.find")
	}
	if d.Login.In != "" && d.Login.In != "header" && d.Login.In != "query" {
		c.add("$.login.in", "%q is neither header nor query", d.Login.In)
	}
	if kind == "none" && len(d.Secrets) > 0 && d.Data == nil {
		c.warn("$.secrets", "there is no log-in, so nothing uses them")
	}
}

// secret checks that a place names a secret that is declared.
func (c *compiler) secret(path string, d *Description, name string) {
	c.used["secrets."+name] = true
	if _, ok := d.Secrets[name]; ok {
		return
	}
	if looksSecret(name, true) {
		c.add(path, "here stands the secret itself: declare a name below secrets and write that; the site's configuration says where the value is")
		return
	}
	c.add(path, "no secret is called %q%s", name, near(name, sorted(d.Secrets)))
}
