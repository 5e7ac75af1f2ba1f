package modelarts

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Words of the signature.
const (
	algorithm = "SDK-HMAC-SHA256"
	timestamp = "20060102T150405Z"
	skew      = 15 * time.Minute
	unsigned  = "UNSIGNED-PAYLOAD"
)

func badSignature(why string) error {
	return &apiError{401, "APIGW.0301", "Incorrect IAM authentication information: " + why}
}

// authenticate checks the signature of a request, its body included, and returns the body.
func (c *Cloud) authenticate(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, badRequest("the body can't be read: %v", err)
	case len(body) > maxBody:
		return nil, &apiError{413, "APIGW.0201", "Backend request size exceeds the limit"}
	}
	access, signed, signature, ok := authorization(r.Header.Get("Authorization"))
	if !ok || !slices.Contains(signed, "x-sdk-date") {
		return nil, badSignature("verify aksk signature fail, the Authorization header is missing or malformed")
	}
	at, err := time.Parse(timestamp, r.Header.Get("X-Sdk-Date"))
	if err != nil {
		return nil, badSignature("verify aksk signature fail, X-Sdk-Date is missing or malformed")
	}
	if d := c.o.Now().Sub(at); d > skew || d < -skew {
		return nil, badSignature("verify aksk signature fail, signature expired")
	}
	if access != c.o.Access {
		return nil, badSignature("Get secretKey failed,ak:" + access + ",err:ak not exist")
	}
	hash := hexSum(body)
	if said := r.Header.Get("X-Sdk-Content-Sha256"); said != "" {
		if said != unsigned && said != hash || !slices.Contains(signed, "x-sdk-content-sha256") {
			return nil, badSignature("verify aksk signature fail, the body is another than the signed one")
		}
		hash = said
	}
	if !hmac.Equal([]byte(c.sign(r, signed, hash)), []byte(signature)) {
		return nil, badSignature("verify aksk signature fail")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, nil
}

// authorization reads "SDK-HMAC-SHA256 Access=…, SignedHeaders=a;b, Signature=…".
func authorization(header string) (access string, signed []string, signature string, ok bool) {
	rest, ok := strings.CutPrefix(header, algorithm+" ")
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "Access":
			access = value
		case "SignedHeaders":
			signed = strings.Split(value, ";")
		case "Signature":
			signature = value
		}
	}
	return access, signed, signature, ok && access != "" && signature != "" && slices.IsSorted(signed)
}

// sign is the signature that the request should have.
func (c *Cloud) sign(r *http.Request, signed []string, hash string) string {
	var b strings.Builder
	path := escape(r.URL.Path, true)
	if !strings.HasSuffix(path, "/") {
		path += "/"
	}
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Method, path, canonicalQuery(r.URL.Query()))
	for _, name := range signed {
		values := slices.Clone(r.Header.Values(name))
		switch name {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{fmt.Sprint(r.ContentLength)}
		}
		slices.Sort(values)
		for _, v := range values {
			fmt.Fprintf(&b, "%s:%s\n", name, strings.TrimSpace(v))
		}
	}
	fmt.Fprintf(&b, "\n%s\n%s", strings.Join(signed, ";"), hash)
	h := hmac.New(sha256.New, []byte(c.o.Secret))
	fmt.Fprintf(h, "%s\n%s\n%s", algorithm, r.Header.Get("X-Sdk-Date"), hexSum([]byte(b.String())))
	return hex.EncodeToString(h.Sum(nil))
}

func canonicalQuery(q url.Values) string {
	var pairs []string
	names := make([]string, 0, len(q))
	for name := range q {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values := slices.Clone(q[name])
		slices.Sort(values)
		for _, v := range values {
			pairs = append(pairs, escape(name, false)+"="+escape(v, false))
		}
	}
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

func uuid(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// hexSum is the SHA-256 of data, in hex.
func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
