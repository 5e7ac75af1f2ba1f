package client

import (
	"bytes"
	"io"
	"log"
	"sync"
)

// unsolicited is how net/http begins a line, in the standard log, about what a
// server says without being asked. What follows is the server's: it may steer a
// terminal, or be a secret of ours.
var unsolicited = []byte("Unsolicited response received on idle HTTP channel")

// quieter lets all of a log by but what servers say in such lines.
type quieter struct{ io.Writer }

func (q quieter) Write(p []byte) (int, error) {
	i := bytes.Index(p, unsolicited)
	if i < 0 {
		return q.Writer.Write(p)
	}
	if _, err := q.Writer.Write(append(bytes.Clone(p[:i+len(unsolicited)]), '\n')); err != nil {
		return 0, err
	}
	return len(p), nil
}

// quiet is done once: net/http has no other place where this can be set.
var quiet = sync.OnceFunc(func() { log.SetOutput(quieter{log.Writer()}) })
