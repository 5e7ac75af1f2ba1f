package pcm

import (
	"errors"
	"fmt"
	"net/http"
)

// Code classifies an error for machines. Codes are part of the API: they
// appear in JSON answers and decide HTTP statuses and exit codes.
type Code string

// The codes. Each maps to one HTTP status and one exit code, see [Code.HTTPStatus] and [Code.ExitCode].
const (
	Invalid      Code = "invalid"      // the request can't be right, whatever the state: mend the request
	Unauthorized Code = "unauthorized" // no or wrong token, passport or signature
	Forbidden    Code = "forbidden"    // known, but not allowed
	NotFound     Code = "not_found"    // no such thing here
	Conflict     Code = "conflict"     // the state has moved on: look again
	Refused      Code = "refused"      // a rule, limit or capacity said no; the message says which
	Busy         Code = "busy"         // a queue is full: retry after a moment
	Unavailable  Code = "unavailable"  // a peer, a leader or a back end can't be reached now
	TooLarge     Code = "too_large"    // over a stated bound
	Internal     Code = "internal"     // a bug or a broken disk; see the log
)

type codeRow struct{ http, exit int }

var codeTable = map[Code]codeRow{
	Invalid:      {http.StatusBadRequest, 2},
	Unauthorized: {http.StatusUnauthorized, 3},
	Forbidden:    {http.StatusForbidden, 3},
	NotFound:     {http.StatusNotFound, 3},
	Conflict:     {http.StatusConflict, 3},
	Refused:      {http.StatusUnprocessableEntity, 3},
	Busy:         {http.StatusTooManyRequests, 4},
	Unavailable:  {http.StatusServiceUnavailable, 4},
	TooLarge:     {http.StatusRequestEntityTooLarge, 3},
	Internal:     {http.StatusInternalServerError, 4},
}

// HTTPStatus is the status with which the local API answers an error of this code.
func (c Code) HTTPStatus() int {
	if r, ok := codeTable[c]; ok {
		return r.http
	}
	return http.StatusInternalServerError
}

// ExitCode is the status with which the CLI ends on an error of this code:
// 2 usage, 3 refused or not found, 4 a peer, leader or back end can't be reached now, or its disk fails.
func (c Code) ExitCode() int {
	if r, ok := codeTable[c]; ok {
		return r.exit
	}
	return 4
}

// Error is the one domain error. Message is for a person: what was wrong, with
// which value, and what to do.
type Error struct {
	Code    Code   `json:"code" cbor:"1,keyasint"`
	Message string `json:"message" cbor:"2,keyasint"`
	Op      string `json:"op,omitempty" cbor:"3,keyasint,omitempty"` // the operation that failed, e.g. "award"

	cause error // kept for errors.Is; never sent to others
}

func (e *Error) Error() string {
	if e.Op != "" {
		return e.Op + ": " + e.Message
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an *Error. A %w verb in format keeps the cause reachable for errors.Is.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), cause: errors.Unwrap(err)}
}

// ErrorCode finds the code of err: that of the first *Error in its chain, else Internal; "" for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// AsError is err as an *Error: itself, the first in its chain, or a new one with code Internal.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: Internal, Message: err.Error(), cause: err}
}
