package mesh

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
)

const maxErrorText = 2048

// asError is err as it goes over the wire: code, message and operation, bounded.
func asError(err error) *pcm.Error {
	var e *pcm.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e = &pcm.Error{Code: pcm.Unavailable, Message: "it took longer than the caller would wait"}
	default:
		e = &pcm.Error{Code: pcm.Internal, Message: err.Error()}
	}
	return cleanError(&pcm.Error{Code: e.Code, Message: e.Message, Op: e.Op})
}

// cleanError bounds an error that another peer sent: a known code, valid text.
func cleanError(e *pcm.Error) *pcm.Error {
	if e.Code.HTTPStatus() == pcm.Internal.HTTPStatus() {
		e.Code = pcm.Internal // also every code that this version doesn't know
	}
	e.Message, e.Op = cleanText(e.Message, maxErrorText), cleanText(e.Op, 64)
	return e
}

// cleanText makes a peer's text fit for logs and terminals.
func cleanText(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// frameError says in our terms why a frame could not be read.
func frameError(p peer.ID, what string, err error) error {
	var e *pcm.Error
	if errors.As(err, &e) {
		return e
	}
	var gone *network.StreamError
	if errors.As(err, &gone) {
		switch gone.ErrorCode {
		case network.StreamGated:
			return pcm.Errorf(pcm.Unauthorized, "%s: peer %s does not admit this peer", what, short(p))
		case network.StreamRateLimited, network.StreamResourceLimitExceeded:
			return pcm.Errorf(pcm.Busy, "%s: peer %s has too much to do: try again in a moment", what, short(p))
		}
	}
	if isTimeout(err) {
		return pcm.Errorf(pcm.Unavailable, "%s: peer %s did not answer in time", what, short(p))
	}
	return pcm.Errorf(pcm.Unavailable, "%s: the stream with peer %s broke: %w", what, short(p), err)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

func isUnsupported(err error) bool {
	return errors.As(err, new(multistream.ErrNotSupported[protocol.ID])) || strings.Contains(err.Error(), "protocols not supported")
}
