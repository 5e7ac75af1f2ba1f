package client

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// failure is why a try has no good answer.
type failure struct {
	code     pcm.Code
	status   int    // 0: there was no answer
	text     string // what is wrong, in our words
	words    string // the server's own, cleaned
	unsent   bool   // the server can't have acted
	final    bool   // trying again won't help
	after    time.Duration
	skew     time.Duration
	location string // where the server sends us
	proof    string // the token that was refused
	err      error  // of the caller's context
}

// cause rides in an error's chain: it tells what a code can't.
type cause struct {
	text   string
	unsent bool
	err    error
}

func (c *cause) Error() string { return c.text }
func (c *cause) Unwrap() error { return c.err }

// Unsent tells of an error of [Client.Do] whether the server can't have acted on
// the call: it was refused, or nothing was sent. Where it is false of a call that
// makes something, look for that before making it again.
func Unsent(err error) bool {
	var c *cause
	return errors.As(err, &c) && c.unsent
}

// error is a failure for a person, without secrets.
func (c *Client) error(o *outgoing, f *failure) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: ", o.method, bare(o.url))
	if f.status != 0 {
		fmt.Fprintf(&b, "HTTP %d", f.status)
		if name := http.StatusText(f.status); name != "" {
			b.WriteString(" " + name)
		}
		if f.words != "" || f.text != "" {
			b.WriteString(": ")
		}
	}
	if f.words != "" {
		b.WriteString(f.words)
		if f.text != "" {
			b.WriteString(": ")
		}
	}
	b.WriteString(f.text)
	if f.after > 0 {
		fmt.Fprintf(&b, " (it asks to be left alone for %s)", f.after.Round(time.Second))
	}
	if f.skew != 0 && f.code == pcm.Refused {
		fmt.Fprintf(&b, " (this machine's clock is %s from the server's: that alone makes signatures invalid)", f.skew.Abs())
	}
	return pcm.Errorf(f.code, "%w", &cause{text: c.cfg.Secrets.Redact(b.String()), unsent: f.unsent, err: f.err})
}

// local is an error of a call that was never sent.
func (c *Client) local(err error) error {
	e := pcm.AsError(err)
	return pcm.Errorf(e.Code, "%w", &cause{text: c.cfg.Secrets.Redact(e.Message), unsent: true})
}
