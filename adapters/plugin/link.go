package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

const (
	service    = "http://plugin/pcm.adapter.v1.Adapter/"
	maxMessage = 4 << 20
	maxWords   = 256 // of an error
)

// Deadlines of calls, as adapter.proto has them.
const (
	shortCall   = 10 * time.Second
	removeCall  = 30 * time.Second
	logsCall    = 30 * time.Second
	startCall   = time.Minute
	outputsCall = 15 * time.Minute
)

// link is the way to a plug-in's socket. It connects with the first call, and
// again after a loss.
type link struct {
	name string
	http *http.Client
	opts []connect.ClientOption
}

// newLink makes the way to the socket at path; what answers there must be a
// process of this user.
func newLink(name, path string, uid uint32) *link {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{Timeout: shortCall}).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			if _, err := peerOf(c, uid); err != nil {
				c.Close()
				return nil, err
			}
			return c, nil
		},
	}
	return &link{name: name, http: &http.Client{Transport: transport}, opts: []connect.ClientOption{
		connect.WithGRPC(), connect.WithReadMaxBytes(maxMessage), connect.WithSendMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil), // nothing that grows
	}}
}

// peerOf is the process that listens at the other end, if it is the user's.
func peerOf(c net.Conn, uid uint32) (pid int, err error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cerr != nil {
		return 0, errors.Join(err, cerr)
	}
	if cred.Uid != uid {
		return 0, pcm.Errorf(pcm.Forbidden, "the plug-in's socket is served by user %d, not by %d", cred.Uid, uid)
	}
	return int(cred.Pid), nil
}

func (l *link) close() { l.http.CloseIdleConnections() }

// call makes a call that has one answer.
func call[Req, Res any](ctx context.Context, l *link, method string, limit time.Duration, req *Req) (*Res, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := connect.NewClient[Req, Res](l.http, service+method, l.opts...).CallUnary(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, l.fault(method, err)
	}
	return res.Msg, nil
}

// meanings are those of gRPC's statuses; the others are faults of the plug-in.
var meanings = map[connect.Code]pcm.Code{
	connect.CodeInvalidArgument:    pcm.Invalid,
	connect.CodeOutOfRange:         pcm.Invalid,
	connect.CodeFailedPrecondition: pcm.Refused,
	connect.CodeUnimplemented:      pcm.Refused,
	connect.CodeNotFound:           pcm.NotFound,
	connect.CodeAborted:            pcm.Conflict,
	connect.CodeAlreadyExists:      pcm.Conflict,
	connect.CodePermissionDenied:   pcm.Forbidden,
	connect.CodeUnauthenticated:    pcm.Unauthorized,
	connect.CodeResourceExhausted:  pcm.Busy,
	connect.CodeUnavailable:        pcm.Unavailable,
	connect.CodeDeadlineExceeded:   pcm.Unavailable,
	connect.CodeCanceled:           pcm.Unavailable,
}

// fault reads the error of a call. What didn't come from the plug-in itself means
// that it can't be reached.
func (l *link) fault(method string, err error) error {
	var own *pcm.Error
	if errors.As(err, &own) {
		return own
	}
	code, words := pcm.Unavailable, err.Error()
	var e *connect.Error
	if errors.As(err, &e) {
		words = e.Message()
		if connect.IsWireError(err) {
			var ok bool
			if code, ok = meanings[e.Code()]; !ok {
				code = pcm.Internal
			}
		} else if e.Code() == connect.CodeResourceExhausted {
			code, words = pcm.TooLarge, fmt.Sprintf("a message has more than %d bytes", maxMessage)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		words = "no answer in time"
	}
	return pcm.Errorf(code, "plug-in %s, %s: %s", l.name, method, pcm.Clean(words, maxWords))
}

// hide takes a secret out of what is to be shown.
func hide(s, secret string) string { return strings.ReplaceAll(s, secret, "***") }
