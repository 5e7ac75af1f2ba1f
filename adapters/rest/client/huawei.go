package client

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// huawei signs by Huawei Cloud's SDK-HMAC-SHA256
// (https://support.huaweicloud.com/intl/en-us/devg-apisign/api-sign-algorithm.html).
type huawei struct {
	keys
	now func() time.Time
}

const (
	huaweiAlgorithm = "SDK-HMAC-SHA256"
	huaweiTime      = "20060102T150405Z"
	huaweiDate      = "X-Sdk-Date"
	huaweiHash      = "X-Sdk-Content-Sha256"
)

func (h *huawei) apply(_ context.Context, req *http.Request, body []byte) (string, error) {
	k, err := h.read()
	if err != nil {
		return "", err
	}
	req.Header.Set(huaweiDate, h.now().UTC().Format(huaweiTime))
	if k.token != "" {
		req.Header.Set("X-Security-Token", k.token)
	}
	// Those that say what is wanted; what lies between may change the others.
	names := []string{"host"}
	for name := range req.Header {
		if strings.HasPrefix(name, "X-") {
			names = append(names, strings.ToLower(name))
		}
	}
	slices.Sort(names)
	req.Header.Set("Authorization", huaweiAuthorization(req, k, names, body))
	return "", nil
}

// huaweiAuthorization signs a request with these of its headers.
func huaweiAuthorization(req *http.Request, k keyValues, names []string, body []byte) string {
	path := canonicalPath(req.URL)
	if !strings.HasSuffix(path, "/") {
		path += "/"
	}
	var headers strings.Builder
	for _, name := range names {
		value := hostOf(req)
		if name != "host" {
			value = strings.TrimSpace(req.Header.Get(name))
		}
		headers.WriteString(name + ":" + value + "\n")
	}
	digest := req.Header.Get(huaweiHash)
	if digest == "" {
		digest = hashHex(body)
	}
	signed := strings.Join(names, ";")
	request := strings.Join([]string{req.Method, path, req.URL.RawQuery, headers.String(), signed, digest}, "\n")
	text := strings.Join([]string{huaweiAlgorithm, req.Header.Get(huaweiDate), hashHex([]byte(request))}, "\n")
	return fmt.Sprintf("%s Access=%s, SignedHeaders=%s, Signature=%s",
		huaweiAlgorithm, k.access, signed, hex.EncodeToString(hmacSHA256([]byte(k.secret), text)))
}
