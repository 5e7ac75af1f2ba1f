package objects

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// apiError is an error as the protocol has it.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

var (
	errMethod   = &apiError{405, "MethodNotAllowed", "The specified method is not allowed against this resource."}
	errNot      = &apiError{501, "NotImplemented", "A header or query you provided implies functionality that is not implemented."}
	errArgument = &apiError{400, "InvalidArgument", "Invalid Argument."}
	errLengthed = &apiError{411, "MissingContentLength", "You must provide the Content-Length HTTP header."}
)

// ServeHTTP answers one request.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := strings.ToLower(rand.Text()[:16])
	w.Header().Set("x-amz-request-id", id)
	if err := s.serve(w, r); err != nil {
		var known *apiError
		if !errors.As(err, &known) {
			known = &apiError{500, "InternalError", err.Error()}
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(known.status)
		if r.Method == http.MethodHead {
			return
		}
		writeXML(w, struct {
			XMLName                            xml.Name `xml:"Error"`
			Code, Message, Resource, RequestId string
		}{Code: known.code, Message: known.message, Resource: r.URL.Path, RequestId: id})
	}
}

func writeXML(w io.Writer, v any) {
	io.WriteString(w, xml.Header)
	xml.NewEncoder(w).Encode(v) // who has gone doesn't read it
}

func (s *Store) serve(w http.ResponseWriter, r *http.Request) error {
	hash, err := s.authenticate(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPut {
		if err := signedBody(r.Body, hash); err != nil {
			return err
		}
	}
	q := r.URL.Query()
	for _, name := range []string{"uploads", "uploadId", "partNumber", "acl", "policy", "versioning", "versions", "versionId", "tagging", "cors", "lifecycle", "delete"} {
		if q.Has(name) {
			return errNot
		}
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case bucket == "":
		return s.serveBuckets(w, r)
	case key == "":
		return s.serveBucket(w, r, bucket)
	default:
		return s.serveObject(w, r, bucket, key, hash)
	}
}

// signedBody checks the small body, mostly none, of what stores nothing.
func signedBody(body io.Reader, hash string) error {
	data, err := io.ReadAll(io.LimitReader(body, maxSmall+1))
	switch sum := sha256.Sum256(data); {
	case err != nil:
		return errLength
	case len(data) > maxSmall:
		return errTooLarge
	case hash != "" && hash != hex.EncodeToString(sum[:]):
		return errBodyHash
	}
	return nil
}

func (s *Store) serveBuckets(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet {
		return errMethod
	}
	type named struct{ Name string }
	var out struct {
		XMLName xml.Name `xml:"ListAllMyBucketsResult"`
		Buckets struct{ Bucket []named }
	}
	s.mu.Lock()
	for name := range s.buckets {
		out.Buckets.Bucket = append(out.Buckets.Bucket, named{name})
	}
	s.mu.Unlock()
	slices.SortFunc(out.Buckets.Bucket, func(a, b named) int { return strings.Compare(a.Name, b.Name) })
	w.Header().Set("Content-Type", "application/xml")
	writeXML(w, out)
	return nil
}

func (s *Store) serveBucket(w http.ResponseWriter, r *http.Request, bucket string) error {
	switch r.Method {
	case http.MethodPut:
		return s.CreateBucket(bucket)
	case http.MethodDelete:
		if err := s.deleteBucket(bucket); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodHead:
		_, err := s.List(bucket, "\x00")
		return err
	case http.MethodGet:
		return s.serveList(w, r, bucket)
	}
	return errMethod
}

// listing is the answer of ListObjectsV2.
type listing struct {
	XMLName                 xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name, Prefix, Delimiter string
	MaxKeys, KeyCount       int
	IsTruncated             bool
	ContinuationToken       string `xml:",omitempty"`
	NextContinuationToken   string `xml:",omitempty"`
	Contents                []content
	CommonPrefixes          []prefixed
}

type content struct {
	Key, LastModified, ETag string
	Size                    int64
	StorageClass            string
}

type prefixed struct{ Prefix string }

func (s *Store) serveList(w http.ResponseWriter, r *http.Request, bucket string) error {
	q := r.URL.Query()
	if q.Has("location") {
		w.Header().Set("Content-Type", "application/xml")
		writeXML(w, struct {
			XMLName xml.Name `xml:"LocationConstraint"`
			Region  string   `xml:",chardata"`
		}{Region: s.o.Region})
		return nil
	}
	if q.Get("list-type") != "2" {
		return errNot
	}
	out := listing{Name: bucket, Prefix: q.Get("prefix"), Delimiter: q.Get("delimiter"), MaxKeys: 1000, ContinuationToken: q.Get("continuation-token")}
	if q.Has("max-keys") {
		n, err := strconv.Atoi(q.Get("max-keys"))
		if err != nil || n < 0 {
			return errArgument
		}
		out.MaxKeys = min(n, 1000)
	}
	after := q.Get("start-after")
	if out.ContinuationToken != "" {
		last, err := base64.URLEncoding.DecodeString(out.ContinuationToken)
		if err != nil {
			return errArgument
		}
		after = string(last)
	}
	all, err := s.List(bucket, out.Prefix)
	if err != nil {
		return err
	}
	last := after
	for _, o := range all {
		name, folder := o.Key, false
		if out.Delimiter != "" {
			if i := strings.Index(o.Key[len(out.Prefix):], out.Delimiter); i >= 0 {
				name, folder = o.Key[:len(out.Prefix)+i+len(out.Delimiter)], true
			}
		}
		if name <= after || folder && name == last {
			continue
		}
		if out.KeyCount == out.MaxKeys {
			out.IsTruncated, out.NextContinuationToken = true, base64.URLEncoding.EncodeToString([]byte(last))
			break
		}
		if folder {
			out.CommonPrefixes = append(out.CommonPrefixes, prefixed{name})
		} else {
			out.Contents = append(out.Contents, content{o.Key, o.Modified.Format("2006-01-02T15:04:05.000Z"), o.ETag, o.Size, "STANDARD"})
		}
		last = name
		out.KeyCount++
	}
	w.Header().Set("Content-Type", "application/xml")
	writeXML(w, out)
	return nil
}

func (s *Store) serveObject(w http.ResponseWriter, r *http.Request, bucket, key, hash string) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		e, f, err := s.open(bucket, key)
		if err != nil {
			return err
		}
		defer f.Close()
		w.Header().Set("ETag", e.ETag)
		w.Header().Set("Content-Type", e.Type)
		http.ServeContent(w, r, "", e.Modified, f)
		return nil
	case http.MethodDelete:
		if err := s.Delete(bucket, key); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPut:
		return s.servePut(w, r, bucket, key, hash)
	}
	return errMethod
}

func (s *Store) servePut(w http.ResponseWriter, r *http.Request, bucket, key, hash string) error {
	switch {
	case r.Header.Get("X-Amz-Copy-Source") != "":
		return errNot
	case r.ContentLength < 0:
		return errLengthed
	case r.ContentLength > s.o.Object:
		return errTooLarge
	}
	c := check{mime: r.Header.Get("Content-Type"), sha256: hash, length: r.ContentLength, fresh: r.Header.Get("If-None-Match") == "*"}
	var err error
	if v := r.Header.Get("Content-Md5"); v != "" {
		if c.md5, err = base64.StdEncoding.DecodeString(v); err != nil {
			return errBadDigest
		}
	}
	if v := r.Header.Get("X-Amz-Checksum-Sha256"); v != "" {
		if c.sum, err = base64.StdEncoding.DecodeString(v); err != nil {
			return errBadDigest
		}
	}
	e, err := s.put(bucket, key, r.Body, c)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", e.ETag)
	w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	return nil
}
