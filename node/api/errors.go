package api

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/jointcloud/pcm"
)

// ErrorBody is the one form of every error that the API returns.
type ErrorBody struct {
	Fault ErrorView `json:"error"`

	status int
}

// ErrorView says what was wrong, with which value, and what to do.
type ErrorView struct {
	Code    pcm.Code `json:"code" doc:"For machines." example:"not_found"`
	Message string   `json:"message" doc:"For people: what was wrong, with which value, what to do."`
}

func (e *ErrorBody) Error() string { return e.Fault.Message }

// GetStatus is the HTTP status; huma asks for it.
func (e *ErrorBody) GetStatus() int { return e.status }

// GetHeaders are the headers that go with the error; huma asks for them.
func (e *ErrorBody) GetHeaders() http.Header {
	if e.status == http.StatusUnauthorized {
		return http.Header{"Www-Authenticate": {`Bearer realm="pcm"`}}
	}
	return nil
}

func newErrorBody(code pcm.Code, message string) *ErrorBody {
	return &ErrorBody{Fault: ErrorView{Code: code, Message: message}, status: code.HTTPStatus()}
}

// errorBody gives any error of a node its form.
func errorBody(err error) *ErrorBody {
	var e *ErrorBody
	if errors.As(err, &e) {
		return e
	}
	if _, ok := errors.AsType[*pcm.Error](err); !ok && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return newErrorBody(pcm.Unavailable, "the node did not answer in time: "+err.Error())
	}
	return newErrorBody(pcm.ErrorCode(err), err.Error())
}

// huma makes its errors (faults of a request's form) through a package
// variable. Those errors take the one form, too.
func init() {
	huma.NewError = func(status int, msg string, details ...error) huma.StatusError {
		var faults []string
		for _, d := range details {
			if d == nil {
				continue
			}
			text := d.Error()
			if f, ok := errors.AsType[*huma.ErrorDetail](d); ok && f.Location != "" {
				text = f.Location + ": " + f.Message
			}
			faults = append(faults, text)
		}
		if len(faults) > 0 {
			msg = "the request is not valid: " + strings.Join(faults, "; ")
		}
		if status == http.StatusUnsupportedMediaType {
			msg += "; send JSON, with the header 'Content-Type: application/json'"
		}
		return newErrorBody(codeOfStatus(status), msg)
	}
}

// codeOfStatus is the code of an error that didn't come from a node: huma's, or
// that of something between client and node.
func codeOfStatus(status int) pcm.Code {
	switch status {
	case 0, http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusUnsupportedMediaType, http.StatusNotAcceptable, http.StatusMethodNotAllowed:
		return pcm.Invalid
	case http.StatusUnauthorized:
		return pcm.Unauthorized
	case http.StatusForbidden:
		return pcm.Forbidden
	case http.StatusNotFound:
		return pcm.NotFound
	case http.StatusConflict:
		return pcm.Conflict
	case http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge:
		return pcm.TooLarge
	case http.StatusTooManyRequests:
		return pcm.Busy
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout, http.StatusRequestTimeout:
		return pcm.Unavailable
	}
	return pcm.Internal
}

func writeError(w http.ResponseWriter, e *ErrorBody) {
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Type", "application/json")
	maps.Copy(w.Header(), e.GetHeaders())
	w.WriteHeader(e.status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(e) // the client may have gone: nobody is left to tell
}
