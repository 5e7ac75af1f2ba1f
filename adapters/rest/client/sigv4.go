package client

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// sigv4 signs by AWS Signature Version 4
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
type sigv4 struct {
	keys
	region, service string
	now             func() time.Time
}

const (
	v4Algorithm = "AWS4-HMAC-SHA256"
	v4Time      = "20060102T150405Z"
	contentHash = "X-Amz-Content-Sha256"
)

func (s *sigv4) apply(_ context.Context, req *http.Request, body []byte) (string, error) {
	k, err := s.read()
	if err != nil {
		return "", err
	}
	digest := req.Header.Get(contentHash)
	if digest == "" {
		digest = hashHex(body)
	}
	if s.service == "s3" {
		req.Header.Set(contentHash, digest)
	}
	s.sign(req, k, digest)
	return "", nil
}

// sign adds the headers of a signature over what is sent.
func (s *sigv4) sign(req *http.Request, k keyValues, digest string) {
	at := s.now().UTC()
	req.Header.Set("X-Amz-Date", at.Format(v4Time))
	if k.token != "" {
		req.Header.Set("X-Amz-Security-Token", k.token)
	}
	names, headers := v4Headers(req)
	text := strings.Join([]string{req.Method, s.path(req.URL), req.URL.RawQuery, headers, names, digest}, "\n")
	req.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		v4Algorithm, k.access, s.scope(at), names, s.signature(k, at, text)))
}

func (s *sigv4) scope(at time.Time) string {
	return at.Format("20060102") + "/" + s.region + "/" + s.service + "/aws4_request"
}

// path is escaped once more than it is sent, but for S3.
func (s *sigv4) path(u *url.URL) string {
	if s.service == "s3" {
		return canonicalPath(u)
	}
	return escapePath(canonicalPath(u))
}

func (s *sigv4) signature(k keyValues, at time.Time, request string) string {
	text := strings.Join([]string{v4Algorithm, at.Format(v4Time), s.scope(at), hashHex([]byte(request))}, "\n")
	key := hmacSHA256([]byte("AWS4"+k.secret), at.Format("20060102"))
	for _, part := range []string{s.region, s.service, "aws4_request"} {
		key = hmacSHA256(key, part)
	}
	return hex.EncodeToString(hmacSHA256(key, text))
}

// v4Headers are the names and the canonical form of what is signed: the host and
// all headers but those that what lies between may change.
func v4Headers(req *http.Request) (names, canonical string) {
	signed := map[string]string{"host": hostOf(req)}
	for k, vs := range req.Header {
		switch k {
		case "Authorization", "User-Agent", "Accept-Encoding", "Accept", "Expect", "X-Amzn-Trace-Id", "Connection":
			continue
		}
		var trimmed []string
		for _, v := range vs {
			trimmed = append(trimmed, strings.Join(strings.Fields(v), " "))
		}
		signed[strings.ToLower(k)] = strings.Join(trimmed, ",")
	}
	if req.ContentLength > 0 {
		signed["content-length"] = fmt.Sprint(req.ContentLength)
	}
	sorted := slices.Sorted(maps.Keys(signed))
	var b strings.Builder
	for _, k := range sorted {
		b.WriteString(k + ":" + signed[k] + "\n")
	}
	return strings.Join(sorted, ";"), b.String()
}

// hostOf is the Host header as it is sent.
func hostOf(req *http.Request) string {
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	// Servers, and those who sign, leave a port out that goes without saying.
	if p := req.URL.Port(); p == "80" && req.URL.Scheme == "http" || p == "443" && req.URL.Scheme == "https" {
		host = strings.TrimSuffix(host, ":"+p)
	}
	return host
}

// presign makes a URL that is good for anybody who has it, for a while.
func (s *sigv4) presign(method string, u *url.URL, k keyValues, life time.Duration) *url.URL {
	at := s.now().UTC()
	signed := *u
	q := signed.Query()
	q.Set("X-Amz-Algorithm", v4Algorithm)
	q.Set("X-Amz-Credential", k.access+"/"+s.scope(at))
	q.Set("X-Amz-Date", at.Format(v4Time))
	q.Set("X-Amz-Expires", fmt.Sprint(int64(life.Seconds())))
	q.Set("X-Amz-SignedHeaders", "host")
	if k.token != "" {
		q.Set("X-Amz-Security-Token", k.token)
	}
	signed.RawPath = canonicalPath(u)
	query := canonicalQuery(q)
	host := hostOf(&http.Request{URL: u})
	text := strings.Join([]string{method, s.path(u), query, "host:" + host + "\n", "host", "UNSIGNED-PAYLOAD"}, "\n")
	signed.RawQuery = query + "&X-Amz-Signature=" + s.signature(k, at, text)
	return &signed
}
