package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
)

// MaxObjects is how many objects a folder may have.
const MaxObjects = 10_000

// S3 says where a bucket is. Fields marked as secrets hold the name of a secret.
type S3 struct {
	Endpoint string // "https://s3.eu-central-1.amazonaws.com", "https://obs.cn-north-4.myhuaweicloud.com"
	Region   string
	Bucket   string
	Style    string // where the bucket's name goes: "path", "host"; "": host with the clouds that want it so, else path

	AccessKey, SecretKey string // secrets
	SessionToken         string // secret; "" for none
}

// Store is a bucket of an object store that speaks S3 with Signature Version 4,
// as OBS does.
type Store struct {
	c      *Client
	signer *sigv4
	base   *url.URL // of the bucket, ending in a slash
}

// Object is one in a store.
type Object struct {
	Name     string // relative to the folder that was listed
	Size     int64
	ETag     string
	Modified time.Time
}

var bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)

// hostStyle are the clouds that want the bucket's name in the host's.
var hostStyle = []string{".amazonaws.com", ".amazonaws.com.cn", ".myhuaweicloud.com", ".aliyuncs.com"}

// NewStore makes a client of a bucket. Of cfg, Origins and Login are not used.
func NewStore(cfg Config, s S3) (*Store, error) {
	u, err := parseURL(s.Endpoint)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "the store's endpoint: %w", err)
	}
	if !bucketName.MatchString(s.Bucket) || strings.Contains(s.Bucket, "..") {
		return nil, pcm.Errorf(pcm.Invalid, "%.64q is not the name of a bucket", s.Bucket)
	}
	host := s.Style == "host"
	for _, suffix := range hostStyle {
		host = host || s.Style == "" && strings.HasSuffix(u.Hostname(), suffix)
	}
	u.RawQuery = ""
	if s.Style != "" && s.Style != "host" && s.Style != "path" {
		return nil, pcm.Errorf(pcm.Invalid, "the store's style %.20q is neither path nor host", s.Style)
	} else if host {
		u.Host = s.Bucket + "." + u.Host
		u = u.JoinPath("/")
	} else {
		u = u.JoinPath(s.Bucket, "/")
	}
	cfg.Origins = []string{u.String()}
	cfg.Login = Login{Kind: SigV4, AccessKey: s.AccessKey, SecretKey: s.SecretKey, SessionToken: s.SessionToken, Region: orDefault(s.Region, "us-east-1"), Service: "s3"}
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	return &Store{c: c, signer: c.login.(*sigv4), base: u}, nil
}

// Close drops idle connections.
func (s *Store) Close() { s.c.Close() }

// CheckName refuses names of objects that could mean another place than they
// seem to: absolute ones, those with "..", with control characters, over 900 bytes.
func CheckName(name string) error {
	switch {
	case !fs.ValidPath(name) || name == ".":
		return pcm.Errorf(pcm.Invalid, "%.80q is no name for an object: it is empty or absolute, or has an empty part or one with dots only", name)
	case len(name) > 900:
		return pcm.Errorf(pcm.Invalid, "the name of an object that begins with %.40q has %d bytes, over the bound of 900", name, len(name))
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) || strings.Contains(name, "\\"):
		return pcm.Errorf(pcm.Invalid, "%.80q is no name for an object: it has a control character or a backslash", name)
	}
	return nil
}

// url of an object.
func (s *Store) url(name string) *url.URL {
	u := *s.base
	u.Path += name
	u.RawPath = escapePath(u.Path)
	return &u
}

func (s *Store) prepare(method, name string, query url.Values) (*outgoing, error) {
	if name != "" {
		if err := CheckName(name); err != nil {
			return nil, s.c.local(err)
		}
	}
	return s.compose(method, name, query)
}

// compose is prepare for any name.
func (s *Store) compose(method, name string, query url.Values) (*outgoing, error) {
	o, err := prepare(Request{Method: method, URL: s.url(name).String(), Query: query, Idempotent: true})
	if err != nil {
		return nil, s.c.local(err)
	}
	o.header.Set("Accept", "*/*")
	return o, nil
}

// ourHash keeps the SHA-256 of what we stored beside it, where stores don't.
const ourHash = "X-Amz-Meta-Pcm-Sha256"

// Put stores size bytes under a name. They are read twice: their digest is part
// of the signature.
func (s *Store) Put(ctx context.Context, name string, r io.ReaderAt, size int64) error {
	o, err := s.prepare(http.MethodPut, name, nil)
	if err != nil {
		return err
	}
	h := sha256.New()
	if n, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil || n != size {
		return s.c.local(pcm.Errorf(pcm.Internal, "can't read what is to be stored as %s: %d of %d bytes: %v", name, n, size, err))
	}
	digest := hex.EncodeToString(h.Sum(nil))
	o.header.Set(contentHash, digest)
	o.header.Set(ourHash, digest)
	o.header.Set("Content-Type", "application/octet-stream")
	_, err = s.c.send(ctx, o, r, size)
	return err
}

// Get writes an object to w. If it is over the limit, or not what the store
// says that it should be, there is an error, when part of it may have been written.
func (s *Store) Get(ctx context.Context, name string, w io.Writer, limit pcm.Bytes) (Object, error) {
	o, err := s.prepare(http.MethodGet, name, nil)
	if err != nil {
		return Object{}, err
	}
	o.header.Set("X-Amz-Checksum-Mode", "ENABLED")
	h := sha256.New()
	d := &download{c: s.c, o: o, w: io.MultiWriter(w, h), limit: int64(limit)}
	if _, err := s.c.receive(ctx, d); err != nil {
		return Object{}, err
	}
	if err := checkSum(d.first, h); err != nil {
		return Object{}, s.c.error(o, &failure{code: pcm.Unavailable, text: err.Error()})
	}
	modified, _ := http.ParseTime(d.first.Get("Last-Modified"))
	return Object{Name: name, Size: d.written, ETag: d.first.Get("ETag"), Modified: modified}, nil
}

// checkSum compares what came with the digests that the store says.
func checkSum(header http.Header, h hash.Hash) error {
	sum := h.Sum(nil)
	if want := header.Get("X-Amz-Checksum-Sha256"); want != "" && !strings.Contains(want, "-") && want != base64.StdEncoding.EncodeToString(sum) {
		return pcm.Errorf(pcm.Unavailable, "what came is not what its checksum is of")
	}
	if want := header.Get(ourHash); want != "" && want != hex.EncodeToString(sum) {
		return pcm.Errorf(pcm.Unavailable, "what came is not what was stored: its SHA-256 is %x, was %.64q", sum, want)
	}
	return nil
}

// Delete removes an object. There need not be one.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return s.c.local(err)
	}
	return s.remove(ctx, name)
}

func (s *Store) remove(ctx context.Context, key string) error {
	o, err := s.compose(http.MethodDelete, key, nil)
	if err != nil {
		return err
	}
	o.ok = []int{http.StatusNotFound}
	_, err = s.c.call(ctx, o, nil)
	return err
}

// Presign makes a URL by which anybody who has it may GET or PUT an object for a
// while: a secret by itself.
func (s *Store) Presign(method, name string, life time.Duration) (string, error) {
	if err := CheckName(name); err != nil {
		return "", s.c.local(err)
	}
	if life < time.Second || life > 7*24*time.Hour {
		return "", s.c.local(pcm.Errorf(pcm.Invalid, "a URL can be good for a second to seven days, not for %s", life))
	}
	k, err := s.signer.read()
	if err != nil {
		return "", s.c.local(err)
	}
	return s.signer.presign(method, s.url(name), k, life).String(), nil
}

// listing is a page of ListObjectsV2.
type listing struct {
	IsTruncated           bool
	EncodingType          string // of keys: "url", or as they are
	NextContinuationToken string
	Contents              []struct {
		Key          string
		Size         int64
		ETag         string
		LastModified string
	}
}

// List names the objects below a folder, by their names relative to it, at most
// max of them, which is at most [MaxObjects]. Names that could mean another place
// are refused, and so are a file and a folder of one name. Objects that stand for folders are left out.
func (s *Store) List(ctx context.Context, folder string, max int) ([]Object, error) {
	prefix := ""
	if folder != "" {
		if err := CheckName(folder); err != nil {
			return nil, s.c.local(err)
		}
		prefix = folder + "/"
	}
	max = min(max, MaxObjects)
	var all []Object
	seen := map[string]bool{} // names; false: a folder
	query := url.Values{"list-type": {"2"}, "prefix": {prefix}, "max-keys": {"1000"}}
	for pages := 0; ; pages++ {
		page, o, err := s.page(ctx, query)
		if err != nil {
			return nil, err
		}
		bad := func(code pcm.Code, format string, args ...any) error {
			return s.c.error(o, &failure{code: code, text: "the list of " + prefix + ": " + fmt.Sprintf(format, args...)})
		}
		for _, e := range page.Contents {
			name, ok := strings.CutPrefix(e.Key, prefix)
			if !ok {
				return nil, bad(pcm.Unavailable, "%.80q does not belong to it", e.Key)
			}
			if name == "" || strings.HasSuffix(name, "/") && e.Size == 0 {
				continue
			}
			if err := CheckName(name); err != nil {
				return nil, bad(pcm.Refused, "%v", err)
			}
			if e.Size < 0 {
				return nil, bad(pcm.Unavailable, "%.80q has %d bytes", name, e.Size)
			}
			if err := enter(seen, name); err != nil {
				return nil, bad(pcm.Refused, "%v", err)
			}
			modified, _ := time.Parse(time.RFC3339, e.LastModified)
			if all = append(all, Object{name, e.Size, e.ETag, modified}); len(all) > max {
				return nil, bad(pcm.TooLarge, "it has more than %d objects", max)
			}
		}
		if !page.IsTruncated {
			return all, nil
		}
		if page.NextContinuationToken == "" || page.NextContinuationToken == query.Get("continuation-token") || pages > MaxObjects {
			return nil, bad(pcm.Unavailable, "it goes on and does not say where")
		}
		query.Set("continuation-token", page.NextContinuationToken)
	}
}

// page lists one page, and tells by which request.
func (s *Store) page(ctx context.Context, query url.Values) (*listing, *outgoing, error) {
	o, err := s.prepare(http.MethodGet, "", query)
	if err != nil {
		return nil, nil, err
	}
	resp, err := s.c.call(ctx, o, nil)
	if err != nil {
		return nil, nil, err
	}
	page := new(listing)
	if err := xml.Unmarshal(resp.Body, page); err != nil {
		return nil, nil, s.c.error(o, &failure{code: pcm.Unavailable, text: "the list of " + query.Get("prefix") + " is not the XML of S3: " + pcm.Clean(err.Error(), 100)})
	}
	return page, o, nil
}

// enter notes a name, and those of the folders that it is in.
func enter(seen map[string]bool, name string) error {
	if _, there := seen[name]; there {
		return pcm.Errorf(pcm.Refused, "%.80q is there twice, or a file and a folder as well", name)
	}
	seen[name] = true
	for i := range len(name) {
		if name[i] == '/' {
			if seen[name[:i]] {
				return pcm.Errorf(pcm.Refused, "%.80q is a file and a folder as well", name[:i])
			}
			seen[name[:i]] = false
		}
	}
	return nil
}
