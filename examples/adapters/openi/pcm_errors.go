package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// callError is why a call did not succeed.
type callError struct {
	code   codes.Code
	text   string
	status int  // of HTTP; 0: no answer
	absent bool // there is no such thing
	unsent bool // the back end has not acted on it
}

func (e *callError) Error() string { return e.text }

// GRPCStatus makes the error one of the contract's.
func (e *callError) GRPCStatus() *status.Status { return status.New(e.code, e.text) }

func isAbsent(err error) bool {
	var e *callError
	return errors.As(err, &e) && e.absent
}

func unsent(err error) bool {
	var e *callError
	return errors.As(err, &e) && e.unsent
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
