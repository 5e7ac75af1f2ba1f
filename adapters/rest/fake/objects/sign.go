package objects

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Words of AWS's signature of version 4.
const (
	algorithm = "AWS4-HMAC-SHA256"
	timestamp = "20060102T150405Z"
	unsigned  = "UNSIGNED-PAYLOAD"

	skew       = 15 * time.Minute
	maxExpires = 7 * 24 * time.Hour
	maxSigned  = 64 // headers
)

var (
	errDenied    = &apiError{403, "AccessDenied", "Access Denied."}
	errNoAccess  = &apiError{403, "InvalidAccessKeyId", "The access key Id you provided does not exist in our records."}
	errSignature = &apiError{403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method."}
	errSkew      = &apiError{403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."}
	errExpired   = &apiError{403, "AccessDenied", "Request has expired."}
	errMalformed = &apiError{400, "AuthorizationHeaderMalformed", "The authorization header you provided is invalid."}
	errChunked   = &apiError{501, "NotImplemented", "Chunked signatures are not implemented: sign the whole body, or UNSIGNED-PAYLOAD."}
	errNoHash    = &apiError{400, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256."}
)

// claim is what a request says of its signature.
type claim struct {
	access, day, region, service string
	signed                       []string
	signature                    string
	time                         time.Time
	hash                         string // of the body, as it was signed
	query                        bool   // pre-signed
}

// authenticate checks a request's signature and returns the hash that its body must
// have in hex, or "" if it may be any.
func (s *Store) authenticate(r *http.Request) (string, error) {
	c, err := s.claim(r)
	if err != nil {
		return "", err
	}
	secret, ok := s.secret(c.access)
	switch {
	case !ok:
		return "", errNoAccess
	case c.service != "s3", s.o.Region != "" && c.region != s.o.Region, c.day != c.time.Format("20060102"):
		return "", errMalformed
	}
	if err := c.covers(r); err != nil {
		return "", err
	}
	if !hmac.Equal([]byte(c.sign(secret, r)), []byte(c.signature)) {
		return "", errSignature
	}
	if c.hash == unsigned {
		return "", nil
	}
	return c.hash, nil
}

func (s *Store) claim(r *http.Request) (claim, error) {
	now := s.o.Now()
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return claim{}, errMalformed
	}
	if q.Get("X-Amz-Algorithm") != "" {
		c := claim{signature: q.Get("X-Amz-Signature"), hash: unsigned, query: true}
		if q.Get("X-Amz-Algorithm") != algorithm || !c.scope(q.Get("X-Amz-Credential")) || !c.headers(q.Get("X-Amz-SignedHeaders")) {
			return c, errMalformed
		}
		seconds, err := strconv.Atoi(q.Get("X-Amz-Expires"))
		if err != nil || seconds < 1 || seconds > int(maxExpires/time.Second) {
			return c, errMalformed
		}
		if c.time, err = time.Parse(timestamp, q.Get("X-Amz-Date")); err != nil {
			return c, errMalformed
		}
		if c.time.After(now.Add(skew)) || now.After(c.time.Add(time.Duration(seconds)*time.Second)) {
			return c, errExpired
		}
		return c, nil
	}
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), algorithm+" ")
	if !ok {
		return claim{}, errDenied
	}
	var c claim
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "Credential":
			ok = c.scope(value)
		case "SignedHeaders":
			ok = c.headers(value)
		case "Signature":
			c.signature = value
		default:
			ok = false
		}
		if !ok {
			return c, errMalformed
		}
	}
	if v := r.Header.Get("X-Amz-Date"); v != "" {
		c.time, err = time.Parse(timestamp, v)
	} else if c.time, err = http.ParseTime(r.Header.Get("Date")); !slices.Contains(c.signed, "date") {
		return c, errDenied
	}
	if err != nil {
		return c, errDenied
	}
	if d := now.Sub(c.time); d > skew || d < -skew {
		return c, errSkew
	}
	switch c.hash = r.Header.Get("X-Amz-Content-Sha256"); {
	case c.hash == "":
		return c, errNoHash
	case strings.HasPrefix(c.hash, "STREAMING-"):
		return c, errChunked
	}
	return c, nil
}

// scope reads "ACCESS/20260101/REGION/s3/aws4_request".
func (c *claim) scope(credential string) bool {
	p := strings.Split(credential, "/")
	if len(p) != 5 || p[4] != "aws4_request" {
		return false
	}
	c.access, c.day, c.region, c.service = p[0], p[1], p[2], p[3]
	return true
}

func (c *claim) headers(list string) bool {
	c.signed = strings.Split(list, ";")
	return len(c.signed) <= maxSigned && slices.IsSorted(c.signed) && slices.Contains(c.signed, "host")
}

// covers tells whether all headers that could change what a request does are signed.
func (c *claim) covers(r *http.Request) error {
	for name := range r.Header {
		name = strings.ToLower(name)
		if (strings.HasPrefix(name, "x-amz-") || strings.HasPrefix(name, "x-obs-")) && !slices.Contains(c.signed, name) {
			return errDenied
		}
	}
	return nil
}

// sign is the signature that the request should have.
func (c *claim) sign(secret string, r *http.Request) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Method, escape(r.URL.Path, true), canonicalQuery(r.URL.RawQuery))
	for _, name := range c.signed {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(max(r.ContentLength, 0), 10)
		}
		fmt.Fprintf(&b, "%s:%s\n", name, strings.Join(strings.Fields(value), " "))
	}
	fmt.Fprintf(&b, "\n%s\n%s", strings.Join(c.signed, ";"), c.hash)
	scope := strings.Join([]string{c.day, c.region, c.service, "aws4_request"}, "/")
	sum := sha256.Sum256([]byte(b.String()))
	key := []byte("AWS4" + secret)
	for _, part := range strings.Split(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, strings.Join([]string{algorithm, c.time.Format(timestamp), scope, hex.EncodeToString(sum[:])}, "\n")))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// canonicalQuery is the query sorted, without the signature itself.
func canonicalQuery(raw string) string {
	q, _ := url.ParseQuery(raw) // claim has refused what doesn't parse
	var pairs []string
	for name, values := range q {
		if name == "X-Amz-Signature" {
			continue
		}
		for _, v := range values {
			pairs = append(pairs, escape(name, false)+"="+escape(v, false))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

// escape writes all but unreserved characters, and slashes of a path, as %XX.
func escape(s string, path bool) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("-_.~", c) >= 0, path && c == '/':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// Presign makes a link by which anybody may do one thing with one object for a
// while. base is where the store is reached: "http://127.0.0.1:9000". access must be
// allowed.
func (s *Store) Presign(method, base, access, bucket, key string, valid time.Duration) (string, error) {
	secret, ok := s.secret(access)
	if !ok {
		return "", errNoAccess
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	now := s.o.Now().UTC()
	region := s.o.Region
	if region == "" {
		region = "fake"
	}
	c := claim{access: access, day: now.Format("20060102"), region: region, service: "s3", signed: []string{"host"}, time: now, hash: unsigned}
	u.Path = "/" + bucket + "/" + key
	u.RawPath = escape(u.Path, true)
	u.RawQuery = url.Values{
		"X-Amz-Algorithm":     {algorithm},
		"X-Amz-Credential":    {strings.Join([]string{access, c.day, c.region, c.service, "aws4_request"}, "/")},
		"X-Amz-Date":          {now.Format(timestamp)},
		"X-Amz-Expires":       {strconv.Itoa(int(valid / time.Second))},
		"X-Amz-SignedHeaders": {"host"},
	}.Encode()
	u.RawQuery += "&X-Amz-Signature=" + c.sign(secret, &http.Request{Method: method, URL: u, Host: u.Host})
	return u.String(), nil
}
