package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/jointcloud/pcm"
)

// KeystoneVersion is what keystone-install.sh installs.
const KeystoneVersion = "26.0.0"

// Keystone is OpenStack's identity service, with a database of its own.
type Keystone struct {
	*Folder
	URL   string // of the identity API, with version
	admin string // a token
	serve *Process
}

const keystonePassword = "the first one"

// Tokens of Fernet are held by nobody; hashes of passwords are as cheap as can be.
const keystoneConf = `[database]
connection = sqlite:///%[1]s/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = %[1]s/keys
[fernet_receipts]
key_repository = %[1]s/keys
[cache]
enabled = false
[identity]
password_hash_rounds = 4
`

// RunKeystone starts it.
func RunKeystone(ctx context.Context) (*Keystone, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't find the cache: %w", err)
	}
	bin := filepath.Join(cache, "pcm", "keystone-"+KeystoneVersion, "bin")
	if _, err := os.Stat(filepath.Join(bin, "keystone-wsgi-public")); err != nil {
		return nil, pcm.Errorf(pcm.NotFound, "%w: Keystone in %s ('.ci/backends keystone' installs it)", ErrMissing, bin)
	}
	f, err := NewFolder("keystone")
	if err != nil {
		return nil, err
	}
	k := &Keystone{Folder: f}
	if err := k.open(ctx, bin); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (k *Keystone) open(ctx context.Context, bin string) error {
	if err := k.Write("keystone.conf", fmt.Sprintf(keystoneConf, k.Dir), 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(k.Path("keys"), 0o700); err != nil {
		return err
	}
	for _, name := range []string{"0", "1"} { // the next one, and the one in use
		key := make([]byte, 32)
		rand.Read(key)
		if err := k.Write("keys/"+name, base64.URLEncoding.EncodeToString(key), 0o600); err != nil {
			return err
		}
	}
	env := []string{"PYTHONUNBUFFERED=1", "OS_KEYSTONE_CONFIG_DIR=" + k.Dir, "OS_KEYSTONE_CONFIG_FILES=keystone.conf"}
	for _, args := range [][]string{
		{"db_sync"},
		{"bootstrap", "--bootstrap-password", keystonePassword, "--bootstrap-region-id", "RegionOne"},
	} {
		if _, err := k.Run(ctx, env, filepath.Join(bin, "keystone-manage"), append([]string{"--config-file", k.Path("keystone.conf")}, args...)...); err != nil {
			return err
		}
	}
	var err error
	if k.serve, err = k.Start("keystone", env, filepath.Join(bin, "keystone-wsgi-public"), "--host", "127.0.0.1", "--port", "0"); err != nil {
		return err
	}
	address := regexp.MustCompile(`Available at http://[^:/]+:(\d+)/`)
	return k.serve.Ready(ctx, func(ctx context.Context) error {
		log, err := os.ReadFile(k.serve.Log)
		if err != nil {
			return err
		}
		at := address.FindSubmatch(log)
		if at == nil {
			return fmt.Errorf("it doesn't say where it listens")
		}
		k.URL = "http://127.0.0.1:" + string(at[1]) + "/v3"
		k.admin, err = k.LogIn(ctx, "admin", keystonePassword, "admin")
		return err
	})
}

// LogIn gives a token of a user for a project.
func (k *Keystone) LogIn(ctx context.Context, name, password, project string) (string, error) {
	domain := map[string]any{"id": "default"}
	_, token, err := k.ask(ctx, "POST", "/auth/tokens", "", map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": map[string]any{"name": name, "password": password, "domain": domain}}},
		"scope":    map[string]any{"project": map[string]any{"name": project, "domain": domain}},
	}})
	return token, err
}

// Valid tells whether a token is.
func (k *Keystone) Valid(ctx context.Context, token string) bool {
	_, _, err := k.ask(ctx, "GET", "/auth/tokens", token, nil)
	return err == nil
}

// Revoke ends a token.
func (k *Keystone) Revoke(ctx context.Context, token string) error {
	_, _, err := k.ask(ctx, "DELETE", "/auth/tokens", token, nil)
	return err
}

// Offer puts a service into the catalogue.
func (k *Keystone) Offer(ctx context.Context, kind, url string) error {
	service, err := k.add(ctx, "service", map[string]any{"type": kind, "name": kind})
	if err != nil {
		return err
	}
	_, err = k.add(ctx, "endpoint", map[string]any{"service_id": service, "interface": "public", "region_id": "RegionOne", "url": url})
	return err
}

// User makes a user with a project of its own, and an application credential of both.
func (k *Keystone) User(ctx context.Context, name, password, project string) (app, secret string, err error) {
	owner, err := k.add(ctx, "user", map[string]any{"name": name, "password": password, "domain_id": "default"})
	if err != nil {
		return "", "", err
	}
	where, err := k.add(ctx, "project", map[string]any{"name": project, "domain_id": "default"})
	if err != nil {
		return "", "", err
	}
	said, _, err := k.ask(ctx, "GET", "/roles?name=member", k.admin, nil)
	if err != nil {
		return "", "", err
	}
	var roles struct{ Roles []struct{ ID string } }
	if err := json.Unmarshal(said, &roles); err != nil || len(roles.Roles) != 1 {
		return "", "", pcm.Errorf(pcm.Unavailable, "keystone has no role of members: %s", said)
	}
	if _, _, err := k.ask(ctx, "PUT", "/projects/"+where+"/users/"+owner+"/roles/"+roles.Roles[0].ID, k.admin, nil); err != nil {
		return "", "", err
	}
	token, err := k.LogIn(ctx, name, password, project)
	if err != nil {
		return "", "", err
	}
	said, _, err = k.ask(ctx, "POST", "/users/"+owner+"/application_credentials", token, map[string]any{"application_credential": map[string]any{"name": "pcm"}})
	if err != nil {
		return "", "", err
	}
	var made struct {
		Credential struct{ ID, Secret string } `json:"application_credential"`
	}
	err = json.Unmarshal(said, &made)
	return made.Credential.ID, made.Credential.Secret, err
}

// add makes one of a kind, and gives its ID.
func (k *Keystone) add(ctx context.Context, kind string, what map[string]any) (id string, err error) {
	said, _, err := k.ask(ctx, "POST", "/"+kind+"s", k.admin, map[string]any{kind: what})
	if err != nil {
		return "", err
	}
	var made map[string]struct{ ID string }
	if err := json.Unmarshal(said, &made); err != nil {
		return "", err
	}
	return made[kind].ID, nil
}

// ask calls it. The token is that of the answer, if it has one.
func (k *Keystone) ask(ctx context.Context, method, path, as string, what any) (said []byte, token string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var body io.Reader
	if what != nil {
		data, err := json.Marshal(what)
		if err != nil {
			return nil, "", err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, k.URL+path, body)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if as != "" {
		req.Header.Set("X-Auth-Token", as)
		req.Header.Set("X-Subject-Token", as)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", pcm.Errorf(pcm.Unavailable, "keystone: %w", err)
	}
	defer resp.Body.Close()
	said, err = io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err == nil && resp.StatusCode/100 != 2 {
		err = pcm.Errorf(pcm.Unavailable, "keystone answers %s %s with %s: %s", method, path, resp.Status, said)
	}
	return said, resp.Header.Get("X-Subject-Token"), err
}

// Close ends it and deletes what it kept.
func (k *Keystone) Close() error {
	if k.serve != nil {
		k.serve.Stop(10 * time.Second)
	}
	return k.Folder.Close()
}
