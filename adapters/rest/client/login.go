package client

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/jointcloud/pcm"
)

// LoginKind is how a client proves who it is.
type LoginKind string

// The kinds of log-in, as descriptions name them.
const (
	NoLogin           LoginKind = "none"
	BearerToken       LoginKind = "bearer"   // a token that doesn't change, or that a call of the back end's own gives
	BasicLogin        LoginKind = "basic"    // user and password in each request
	APIKey            LoginKind = "api-key"  // a key in a header or in the query
	ClientCredentials LoginKind = "oauth2"   // OAuth 2.0 client credentials (RFC 6749, 4.4)
	Keystone          LoginKind = "keystone" // OpenStack Identity v3: password or application credential
	SigV4             LoginKind = "aws"      // AWS Signature Version 4; OBS and other S3 stores, too
	Huawei            LoginKind = "huawei"   // SDK-HMAC-SHA256
)

// LoginKinds lists them.
var LoginKinds = []LoginKind{NoLogin, BearerToken, BasicLogin, APIKey, ClientCredentials, Keystone, SigV4, Huawei}

// Login says how to prove who we are. Which fields count depends on Kind. Fields
// marked as secrets hold the name of a secret in [Config.Secrets], never its value.
type Login struct {
	Kind LoginKind // "": none

	// Where a token or key goes. Header is "Authorization" by default ("X-Api-Key"
	// for keys, "X-Auth-Token" for Keystone). Prefix stands before the token, "Bearer "
	// by default where no header is named. Query, for keys only, takes the place of the header.
	Header, Prefix, Query string

	Token string // secret: bearer, api-key

	User     string // basic, keystone
	Password string // secret: basic, keystone

	URL          string // oauth2: of tokens; keystone: of the interface, with /v3
	ClientID     string // oauth2
	ClientSecret string // secret: oauth2
	Scopes       []string
	Audience     string
	InBody       bool // oauth2: ID and secret go in the form instead of by basic

	UserDomain, Project, ProjectDomain string // keystone: names; "Default" for domains
	ProjectID                          string // keystone: instead of the project's name and domain
	Credential                         string // keystone: ID of an application credential, instead of user and project
	CredentialSecret                   string // secret

	AccessKey    string // secret: aws, huawei
	SecretKey    string // secret
	SessionToken string // secret: of temporary keys; "" for none
	Region       string // aws
	Service      string // aws: "s3", "execute-api"

	// Bearer by a call: it is made when a token is needed, and Find reads the token
	// and how long it is good for (0: not said) from its answer. Where a value in the
	// call's body is a map {"secret": NAME}, the secret of that name stands in its place.
	Request *Request
	Find    func(*Response) (token string, life time.Duration, err error)
}

// login is one way to prove who we are.
type login interface {
	// apply adds the proof to a request whose path and query have their canonical
	// form. It returns the token that it used, if it got one by logging in.
	apply(ctx context.Context, req *http.Request, body []byte) (string, error)

	// renew is told that a token was refused; it is true if another one can be had.
	renew(token string) bool

	describe() string // which secrets it uses, for messages
	header() string   // that holds the proof; "": none
	secret() bool     // whether what it sends is a secret, rather than a signature
}

func newLogin(c *Client, l Login) (login, error) {
	need := func(fields ...string) error {
		for i := 0; i < len(fields); i += 2 {
			if fields[i+1] == "" {
				return pcm.Errorf(pcm.Invalid, "the log-in by %s needs %s", l.Kind, fields[i])
			}
		}
		return nil
	}
	if l.Header != "" {
		l.Header = textproto.CanonicalMIMEHeaderKey(l.Header)
		if !httpguts.ValidHeaderFieldName(l.Header) || slices.Contains(ours, l.Header) {
			return nil, pcm.Errorf(pcm.Invalid, "header %.64q can't hold a log-in", l.Header)
		}
	} else if l.Header = "Authorization"; l.Prefix == "" {
		l.Prefix = "Bearer "
	}
	s := c.cfg.Secrets
	switch l.Kind {
	case "", NoLogin:
		return noLogin{}, nil
	case BearerToken:
		if l.Request != nil {
			break
		}
		return &fixed{s: s, name: l.Token, head: l.Header, prefix: l.Prefix}, need("token", l.Token)
	case APIKey:
		k := &fixed{s: s, name: l.Token, head: l.Header, prefix: l.Prefix, query: l.Query}
		if l.Query != "" {
			k.head = ""
		} else if k.head == "Authorization" && k.prefix == "Bearer " {
			k.head, k.prefix = "X-Api-Key", ""
		}
		return k, need("token", l.Token)
	case BasicLogin:
		if strings.Contains(l.User, ":") {
			return nil, pcm.Errorf(pcm.Invalid, "a user for basic log-in can't have a colon: %.64q", l.User)
		}
		return &basic{s: s, user: l.User, password: l.Password}, need("user", l.User, "password", l.Password)
	case SigV4:
		return &sigv4{keys: keys{s, l.AccessKey, l.SecretKey, l.SessionToken}, region: l.Region, service: l.Service, now: c.clock},
			need("access_key", l.AccessKey, "secret_key", l.SecretKey, "region", l.Region, "service", l.Service)
	case Huawei:
		return &huawei{keys: keys{s, l.AccessKey, l.SecretKey, l.SessionToken}, now: c.clock}, need("access_key", l.AccessKey, "secret_key", l.SecretKey)
	}
	var g grant
	var err error
	switch l.Kind {
	case ClientCredentials:
		g, err = &oauth{c: c, l: l}, need("url", l.URL, "client_id", l.ClientID, "client_secret", l.ClientSecret)
	case BearerToken:
		if l.URL = l.Request.URL; l.Find == nil {
			err = pcm.Errorf(pcm.Invalid, "the log-in by a call doesn't say where in its answer the token is")
		}
		g = &tokenCall{c: c, l: l}
	case Keystone:
		if l.Header == "Authorization" {
			l.Header, l.Prefix = "X-Auth-Token", ""
		}
		g = &keystone{c: c, l: l}
		if l.Credential != "" {
			err = need("url", l.URL, "credential_secret", l.CredentialSecret)
		} else {
			err = need("url", l.URL, "user", l.User, "password", l.Password)
		}
	default:
		return nil, pcm.Errorf(pcm.Invalid, "%.32q is no kind of log-in: there are %v", l.Kind, LoginKinds)
	}
	if err != nil {
		return nil, err
	}
	u, err := parseURL(l.URL)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "the log-in's url: %w", err)
	}
	if u.Scheme == "http" && !c.cfg.AllowPrivate {
		return nil, pcm.Errorf(pcm.Invalid, "the log-in's url %s is not HTTPS: secrets are not sent that way unless allow_private says that the network is the site's own", bare(u))
	}
	return &tokens{s: s, grant: g, url: u, head: l.Header, prefix: l.Prefix, now: c.clock, turn: make(chan struct{}, 1)}, nil
}

type noLogin struct{}

func (noLogin) apply(context.Context, *http.Request, []byte) (string, error) { return "", nil }
func (noLogin) renew(string) bool                                            { return false }
func (noLogin) describe() string                                             { return "whether it needs a log-in: none is described" }
func (noLogin) header() string                                               { return "" }
func (noLogin) secret() bool                                                 { return false }

// fixed is a token or key that somebody else made.
type fixed struct {
	s                         *Secrets
	name, head, prefix, query string
}

func (f *fixed) apply(_ context.Context, req *http.Request, _ []byte) (string, error) {
	v, err := f.s.Get(f.name)
	if err != nil {
		return "", err
	}
	if f.query != "" {
		q := req.URL.Query()
		q.Set(f.query, v)
		req.URL.RawQuery = canonicalQuery(q)
		return "", nil
	}
	return "", setHeader(req, f.s, f.name, f.head, f.prefix+v)
}

// setHeader refuses values that are no header's, without showing them.
func setHeader(req *http.Request, s *Secrets, name, head, value string) error {
	if !httpguts.ValidHeaderFieldValue(value) {
		return pcm.Errorf(pcm.Invalid, "%s has a line break or another character that no header takes", s.describe(name))
	}
	req.Header.Set(head, value)
	return nil
}

func (f *fixed) renew(string) bool { return false }
func (f *fixed) describe() string  { return "secret " + f.s.describe(f.name) }
func (f *fixed) header() string    { return f.head }
func (f *fixed) secret() bool      { return true }

type basic struct {
	s              *Secrets
	user, password string
}

func (b *basic) apply(_ context.Context, req *http.Request, _ []byte) (string, error) {
	v, err := b.s.Get(b.password)
	if err != nil {
		return "", err
	}
	pair := base64.StdEncoding.EncodeToString([]byte(b.user + ":" + v))
	b.s.hide(pair)
	req.Header.Set("Authorization", "Basic "+pair)
	return "", nil
}

func (b *basic) renew(string) bool { return false }
func (b *basic) describe() string {
	return "user " + b.user + " and secret " + b.s.describe(b.password)
}
func (b *basic) header() string { return "Authorization" }
func (b *basic) secret() bool   { return true }

// keys are a pair of an access key and a secret key, perhaps with a token.
type keys struct {
	s                     *Secrets
	access, secretKey, to string
}

type keyValues struct{ access, secret, token string }

func (k keys) read() (v keyValues, err error) {
	if v.access, err = k.s.Get(k.access); err != nil {
		return v, err
	}
	if v.secret, err = k.s.Get(k.secretKey); err != nil {
		return v, err
	}
	if k.to != "" {
		if v.token, err = k.s.Get(k.to); err != nil {
			return v, err
		}
	}
	if !httpguts.ValidHeaderFieldValue(v.access+v.token) || strings.ContainsAny(v.access, " ,/=") {
		return v, pcm.Errorf(pcm.Invalid, "secret %s is no access key", k.s.describe(k.access))
	}
	return v, nil
}

func (k keys) renew(string) bool { return false }
func (k keys) header() string    { return "Authorization" }
func (k keys) secret() bool      { return k.to != "" }

func (k keys) describe() string {
	text := "secrets " + k.s.describe(k.access) + " and " + k.s.describe(k.secretKey)
	if k.to != "" {
		text += " and " + k.s.describe(k.to)
	}
	return text
}

// Endpoint finds a service in the catalogue that a Keystone log-in got, e.g.
// "compute", "public", "RegionOne"; an empty region takes the first. Its address
// gets the log-in from then on.
func (c *Client) Endpoint(ctx context.Context, service, iface, region string) (string, error) {
	t, ok := c.login.(*tokens)
	if !ok {
		return "", c.local(pcm.Errorf(pcm.Invalid, "only a log-in by keystone has a catalogue of services"))
	}
	k, ok := t.grant.(*keystone)
	if !ok {
		return "", c.local(pcm.Errorf(pcm.Invalid, "only a log-in by keystone has a catalogue of services"))
	}
	if _, err := t.get(ctx); err != nil {
		return "", c.local(err)
	}
	address, err := k.find(service, iface, region)
	if err != nil {
		return "", c.local(err)
	}
	u, err := parseURL(address)
	if err == nil && u.Scheme == "http" && t.url.Scheme == "https" {
		err = pcm.Errorf(pcm.Refused, "the catalogue's address of %s is not HTTPS, as the log-in's is: %s", service, bare(u))
	}
	if err != nil {
		return "", c.local(err)
	}
	c.trust(u)
	return strings.TrimSuffix(address, "/"), nil
}
