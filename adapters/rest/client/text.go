package client

import (
	"encoding/json"
	"encoding/xml"
	"strings"
)

const maxWords = 300 // bytes of a server's own words in our messages

// words finds what a server says of an error in one of the usual places; else
// the beginning of its text.
func words(body []byte, contentType string) string {
	trimmed := strings.TrimSpace(string(body[:min(len(body), 16<<10)]))
	if strings.HasPrefix(trimmed, "{") && len(body) <= 16<<10 {
		if v, err := decodeJSON(body); err == nil {
			if said := said(v, 4); said != "" {
				return said
			}
		}
	}
	if strings.HasPrefix(trimmed, "<?xml") || strings.HasPrefix(trimmed, "<Error") {
		var e struct {
			Code, Message string
		}
		if xml.Unmarshal(body[:min(len(body), 16<<10)], &e) == nil && e.Code+e.Message != "" {
			return strings.TrimPrefix(e.Code+": "+e.Message, ": ")
		}
	}
	if strings.Contains(contentType, "html") || strings.HasPrefix(trimmed, "<") {
		return "" // a page for people: nothing in it helps
	}
	return trimmed
}

var (
	messageKeys = []string{"error_msg", "message", "error_description", "error_message", "errorMessage", "detail", "msg", "title", "reason"}
	codeKeys    = []string{"error_code", "code", "errorCode", "type"}
)

// said looks for a message, and a code before it, in an error object or in the
// object that it wraps.
func said(v any, depth int) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		if len(v) > 0 && depth > 0 {
			return said(v[0], depth-1)
		}
	case map[string]any:
		for _, k := range messageKeys {
			message, ok := v[k].(string)
			if !ok || message == "" {
				continue
			}
			for _, c := range codeKeys {
				if code, ok := v[c].(string); ok && code != "" && code != message {
					return code + ": " + message
				} else if n, ok := v[c].(json.Number); ok {
					return n.String() + ": " + message
				}
			}
			return message
		}
		for _, k := range []string{"error", "errors", "fault"} {
			if inner := v[k]; inner != nil && depth > 0 {
				if s := said(inner, depth-1); s != "" {
					return s
				}
			}
		}
		// OpenStack wraps its faults in one key named after the fault.
		if len(v) == 1 && depth > 0 {
			for _, inner := range v {
				if m, ok := inner.(map[string]any); ok {
					return said(m, depth-1)
				}
			}
		}
	}
	return ""
}
