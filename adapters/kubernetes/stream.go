package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	gorilla "github.com/gorilla/websocket"
	"k8s.io/client-go/transport/websocket"

	"github.com/jointcloud/pcm"
)

// dial opens a WebSocket to a subresource of a pod.
func (c *cluster) dial(ctx context.Context, pod, sub string, q url.Values, protocol string) (*gorilla.Conn, error) {
	u, err := c.url(pod, sub, q)
	if err != nil {
		return nil, err
	}
	rt, holder, err := websocket.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	conn, err := websocket.Negotiate(rt, holder, req, protocol)
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(maxFrame)
	return conn, nil
}

// Channels of v5.channel.k8s.io, the first byte of each frame.
const (
	chanStdin  = 0
	chanStdout = 1
	chanStderr = 2
	chanError  = 3
	chanResize = 4
	chanClose  = 255
)

const (
	execProtocol = "v5.channel.k8s.io"
	maxFrame     = 1 << 20
	frameSize    = 32 << 10
	pingEvery    = 10 * time.Second
	pongMost     = 60 * time.Second // that the other side may keep silent
	writeMost    = 60 * time.Second // that it may refuse to read
)

// command is one to run in a container.
type command struct {
	pod, container string
	argv           []string
	tty            bool
	stdin          io.Reader // nil: none
	stdout, stderr io.Writer // nil: thrown away
	resize         <-chan [2]uint16
}

// exec runs a command in a container and returns its exit code. The command's
// process does not always end with ctx; its streams do.
func (c *cluster) exec(ctx context.Context, x command) (int, error) {
	q := url.Values{"container": {x.container}, "command": x.argv, "stdout": {"true"}}
	if x.stdin != nil {
		q.Set("stdin", "true")
	}
	if x.tty {
		q.Set("tty", "true")
	} else {
		q.Set("stderr", "true")
	}
	conn, err := c.dial(ctx, x.pod, "exec", q, execProtocol)
	if err != nil {
		return 0, err
	}
	s := &session{conn: conn}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go s.ping(ctx)
	if x.stdin != nil {
		go s.send(ctx, x.stdin)
	}
	if x.resize != nil {
		go s.resize(ctx, x.resize)
	}
	code, err := s.receive(x.stdout, x.stderr)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return code, err
}

// session is a connection on which several may write.
type session struct {
	conn *gorilla.Conn
	mu   sync.Mutex
}

func (s *session) write(channel byte, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(writeMost))
	w, err := s.conn.NextWriter(gorilla.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte{channel}); err != nil {
		return err
	}
	if _, err := w.Write(p); err != nil {
		return err
	}
	return w.Close()
}

func (s *session) ping(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.conn.WriteControl(gorilla.PingMessage, nil, time.Now().Add(writeMost)) != nil {
				return
			}
		}
	}
}

func (s *session) send(ctx context.Context, in io.Reader) {
	buf := make([]byte, frameSize)
	for ctx.Err() == nil {
		n, err := in.Read(buf)
		if n > 0 && s.write(chanStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	s.write(chanClose, []byte{chanStdin}) // if it fails, the command ends with the connection
}

func (s *session) resize(ctx context.Context, sizes <-chan [2]uint16) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok || s.write(chanResize, fmt.Appendf(nil, `{"Width":%d,"Height":%d}`, size[1], size[0])) != nil {
				return
			}
		}
	}
}

// receive copies what comes until the command has ended.
func (s *session) receive(stdout, stderr io.Writer) (int, error) {
	extend := func(string) error { return s.conn.SetReadDeadline(time.Now().Add(pongMost)) }
	s.conn.SetPongHandler(extend)
	for {
		extend("")
		kind, r, err := s.conn.NextReader()
		if err != nil {
			return 0, err
		}
		if kind != gorilla.BinaryMessage {
			continue
		}
		var channel [1]byte
		if _, err := io.ReadFull(r, channel[:]); err != nil {
			continue // an empty frame opens a channel
		}
		var to io.Writer
		switch channel[0] {
		case chanStdout:
			to = stdout
		case chanStderr:
			to = stderr
		case chanError:
			data, err := io.ReadAll(r)
			if err != nil {
				return 0, err
			}
			return exitOf(data)
		}
		if to == nil {
			to = io.Discard
		}
		if _, err := io.Copy(to, r); err != nil {
			return 0, err
		}
	}
}

// exitOf reads the status that ends an exec.
func exitOf(data []byte) (int, error) {
	var st struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return 0, fmt.Errorf("the end of a command is not understood: %w", err)
	}
	if st.Status == "Success" {
		return 0, nil
	}
	for _, c := range st.Details.Causes {
		if c.Reason == "ExitCode" {
			if n, err := strconv.Atoi(c.Message); err == nil && n >= 0 && n <= 255 {
				return n, nil
			}
		}
	}
	return 0, errors.New(st.Message)
}

// portProtocol carries one port: a channel for its bytes and one for errors, each
// of which begins with the port's number.
const portProtocol = "v4.channel.k8s.io"

// forward reaches a port of a pod.
func (c *cluster) forward(ctx context.Context, pod string, port int) (*tunnel, error) {
	conn, err := c.dial(ctx, pod, "portforward", url.Values{"ports": {strconv.Itoa(port)}}, portProtocol)
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't reach port %d of the task: %w", port, err)
	}
	return &tunnel{s: &session{conn: conn}}, nil
}
