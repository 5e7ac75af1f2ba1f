package client

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// awsKeys are those of AWS's published examples.
var awsKeys = keyValues{access: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}

func at2015() time.Time { return time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC) }

// request has its path and query in the form in which they are sent.
func request(t *testing.T, method, target string, body string, header ...string) *http.Request {
	t.Helper()
	o, err := prepare(Request{Method: method, URL: target, Body: body})
	if err != nil {
		t.Fatal(err)
	}
	o.header = http.Header{}
	for i := 0; i < len(header); i += 2 {
		o.header.Add(header[i], header[i+1])
	}
	return o.build()
}

// TestSigV4Suite holds signatures against those of AWS's Signature Version 4 test suite.
func TestSigV4Suite(t *testing.T) {
	s := &sigv4{region: "us-east-1", service: "service", now: at2015}
	for _, c := range []struct{ name, method, target, signature string }{
		{"get-vanilla", "GET", "https://example.amazonaws.com/", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"post-vanilla", "POST", "https://example.amazonaws.com/", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"get-vanilla-query-order-key-case", "GET", "https://example.amazonaws.com/?Param2=value2&Param1=value1", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		{"get-vanilla-empty-query-key", "GET", "https://example.amazonaws.com/?Param1=value1", "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"},
	} {
		req := request(t, c.method, c.target, "")
		s.sign(req, awsKeys, hashHex(nil))
		want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + c.signature
		if got := req.Header.Get("Authorization"); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, want)
		}
	}
}

// TestSigV4Examples are those of "Signature Calculations for the Authorization
// Header" and "Authenticating Requests: Using Query Parameters" of Amazon S3.
func TestSigV4Examples(t *testing.T) {
	s := &sigv4{region: "us-east-1", service: "s3", now: func() time.Time { return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC) }}
	k := keyValues{access: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
	for _, c := range []struct {
		method, target, body string
		header               []string
		signature            string
	}{
		{"GET", "https://examplebucket.s3.amazonaws.com/test.txt", "", []string{"Range", "bytes=0-9"}, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"GET", "https://examplebucket.s3.amazonaws.com/?lifecycle", "", nil, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"GET", "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", "", nil, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
		{"PUT", "https://examplebucket.s3.amazonaws.com/test$file.text", "Welcome to Amazon S3.",
			[]string{"Date", "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Storage-Class", "REDUCED_REDUNDANCY"}, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
	} {
		req := request(t, c.method, c.target, c.body, c.header...)
		req.ContentLength = 0 // which the examples don't sign
		digest := hashHex([]byte(c.body))
		req.Header.Set(contentHash, digest)
		s.sign(req, k, digest)
		if got := req.Header.Get("Authorization"); !strings.HasSuffix(got, "Signature="+c.signature) {
			t.Errorf("%s %s: %s, want signature %s", c.method, c.target, got, c.signature)
		}
	}
	u, _ := url.Parse("https://examplebucket.s3.amazonaws.com/test.txt")
	want := "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request" +
		"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
	if got := s.presign("GET", u, k, 24*time.Hour).String(); got != want {
		t.Errorf("presigned:\n got %s\nwant %s", got, want)
	}
}

// TestHuaweiVectors are the two requests of the vendor's own test of its signer,
// which sign the date only.
func TestHuaweiVectors(t *testing.T) {
	k := keyValues{access: "AccessKey", secret: "SecretKey"}
	for _, c := range []struct{ method, target, body, signature string }{
		{"GET", "https://example.huaweicloud.com/path?limit=1", "", "5a2ce64c865e0e6046321c6f3d5a77ba8413eeaf355c3166c03d58d02ac79624"},
		{"POST", "https://example.huaweicloud.com/path?key=value", "{\"Name\":\"test\",\"Id\":1}\n", "cecc2af119b18ab70b4d094c0750f3b42c02f254903179a0fc2cc72fc9db4f59"},
	} {
		req := request(t, c.method, c.target, c.body, huaweiDate, "20060102T150405Z")
		want := "SDK-HMAC-SHA256 Access=AccessKey, SignedHeaders=x-sdk-date, Signature=" + c.signature
		if got := huaweiAuthorization(req, k, []string{"x-sdk-date"}, []byte(c.body)); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.method, got, want)
		}
	}
}

func TestCanonical(t *testing.T) {
	q := url.Values{"test": {"一 (&=?!#%.*)"}, "path": {"/tmp/123"}, "multi": {"2", "1", "3"}, "a-b": {"1"}, "a": {""}}
	want := "a=&a-b=1&multi=1&multi=2&multi=3&path=%2Ftmp%2F123&test=%E4%B8%80%20%28%26%3D%3F%21%23%25.%2A%29"
	if got := canonicalQuery(q); got != want {
		t.Errorf("query: %s, want %s", got, want)
	}
	for from, want := range map[string]string{
		"https://h": "/", "https://h/a%20b/c%2Fd+e": "/a%20b/c%2Fd%2Be", "https://h/ä//~x/": "/%C3%A4//~x/", "https://h/a=b:c@d": "/a%3Db%3Ac%40d",
	} {
		u, err := url.Parse(from)
		if err != nil {
			t.Fatal(err)
		}
		u.Path = orDefault(u.Path, "/")
		if got := canonicalPath(u); got != want {
			t.Errorf("path of %s: %s, want %s", from, got, want)
		}
		// What is signed is what is sent.
		if u.RawPath = want; u.EscapedPath() != want {
			t.Errorf("path of %s is sent as %s", from, u.EscapedPath())
		}
	}
}
