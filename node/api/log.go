package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// Log is a node that serves its cell's ledger as a public log
// (https://c2sp.org/tlog-tiles). Errors are *pcm.Error: NotFound for what the log
// does not have, Unavailable for what this node lacks for now, or for good: then they
// wrap [ErrRemoved].
type Log interface {
	// LogCheckpoint is the log's signed head.
	LogCheckpoint(ctx context.Context, cell pcm.CellID) ([]byte, error)
	// LogTile is a tile or a bundle of entries, e.g. "tile/0/000.p/7" or "tile/entries/000".
	LogTile(ctx context.Context, cell pcm.CellID, path string) ([]byte, error)
	// LogBase is the state from which the log can be verified where its first entries
	// can't be had from this node; NotFound if all can.
	LogBase(ctx context.Context, cell pcm.CellID) ([]byte, error)
	// LogKeys are the verifier keys of those who sign.
	LogKeys(ctx context.Context, cell pcm.CellID) ([]string, error)
}

// ErrRemoved is wrapped by errors about entries that this node has removed and can't
// serve: the answer has no Retry-After, as to ask again is of no use.
var ErrRemoved = errors.New("removed here after their time")

// logPrefix is where logs are, followed by the cell and logSuffix.
const (
	logPrefix = "/v1/cells/"
	logSuffix = "/log/"
)

// LogPath is the path of a cell's log: the prefix for tools that read such logs.
func LogPath(cell pcm.CellID) string { return logPrefix + string(cell) + logSuffix }

// logRoutes puts the log onto a mux.
func logRoutes(mux *http.ServeMux, node Log, log *slog.Logger) {
	handle := func(path, contentType string, get func(r *http.Request, cell pcm.CellID) ([]byte, error)) {
		mux.HandleFunc("GET "+logPrefix+"{cell}"+logSuffix+path, func(w http.ResponseWriter, r *http.Request) {
			body, err := get(r, pcm.CellID(r.PathValue("cell")))
			if err != nil {
				e := errorBody(err)
				if e.Fault.Code == pcm.Internal && r.Context().Err() == nil {
					log.Error("the log can't be served", "path", r.URL.Path, "err", err)
				}
				if (e.Fault.Code == pcm.Unavailable || e.Fault.Code == pcm.Busy) && !errors.Is(err, ErrRemoved) {
					w.Header().Set("Retry-After", "1")
				}
				writeError(w, e)
				return
			}
			w.Header().Set("Content-Type", contentType)
			writeLog(w, r, body)
		})
	}
	handle("checkpoint", "text/plain; charset=utf-8", func(r *http.Request, cell pcm.CellID) ([]byte, error) {
		return node.LogCheckpoint(r.Context(), cell)
	})
	handle("vkeys", "text/plain; charset=utf-8", func(r *http.Request, cell pcm.CellID) ([]byte, error) {
		keys, err := node.LogKeys(r.Context(), cell)
		return []byte(strings.Join(append(keys, ""), "\n")), err
	})
	handle("base", "application/cbor", func(r *http.Request, cell pcm.CellID) ([]byte, error) {
		return node.LogBase(r.Context(), cell)
	})
	handle("tile/{path...}", "application/octet-stream", func(r *http.Request, cell pcm.CellID) ([]byte, error) {
		return node.LogTile(r.Context(), cell, "tile/"+r.PathValue("path"))
	})
}

// writeLog answers with a file of the log. Tiles never change; what changes is
// to be asked for again, and answered briefly when it is the same.
func writeLog(w http.ResponseWriter, r *http.Request, body []byte) {
	h := w.Header()
	tag := func() string {
		sum := sha256.Sum256(body)
		return `"` + hex.EncodeToString(sum[:16]) + `"`
	}
	if h.Get("Content-Type") == "application/octet-stream" {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag())
		if strings.Contains(r.Header.Get("If-None-Match"), h.Get("ETag")) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	h.Add("Vary", "Accept-Encoding")
	const worthIt = 1 << 10 // bytes
	if strings.Contains(r.URL.Path, "/tile/entries/") && len(body) >= worthIt && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is a good one
		z.Write(body)                                   // into memory
		z.Close()
		h.Set("Content-Encoding", "gzip")
		body = b.Bytes()
	}
	w.Write(body) // a client that goes away needs no answer
}

// Bounds of the listener for outsiders.
const (
	maxLogInFlight = 16  // requests in work; a bundle may have 16 MiB
	maxLogConns    = 256 // connections
)

// ServeLog serves the log, and nothing else, to anybody on a listener, until ctx
// ends or it fails. It closes the listener.
func ServeLog(ctx context.Context, node Log, log *slog.Logger, l net.Listener) error {
	mux := http.NewServeMux()
	logRoutes(mux, node, log)
	slots := make(chan struct{}, maxLogInFlight)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("Cache-Control", "no-store")
			if r.ContentLength != 0 {
				writeError(w, newErrorBody(pcm.Invalid, "the log is read only"))
				return
			}
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			default:
				w.Header().Set("Retry-After", "1")
				writeError(w, newErrorBody(pcm.Unavailable, "the log is read by many: try again in a moment"))
				return
			}
			router(mux).ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(&boundedListener{Listener: l, slots: make(chan struct{}, maxLogConns)}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// boundedListener closes connections above a bound at once.
type boundedListener struct {
	net.Listener
	slots chan struct{}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &boundedConn{Conn: c, free: func() { <-l.slots }}, nil
		default:
			c.Close()
		}
	}
}

// boundedConn gives its slot back, once, when it is closed.
type boundedConn struct {
	net.Conn
	once sync.Once
	free func()
}

func (c *boundedConn) Close() error {
	c.once.Do(c.free)
	return c.Conn.Close()
}

// LogFile reads a file of a cell's log: "checkpoint", "vkeys", "base" or "tile/…", of at
// most so many bytes.
func (c *Client) LogFile(ctx context.Context, cell pcm.CellID, path string, most int64) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, LogPath(cell)+path, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if int64(len(body)) > most {
		return nil, pcm.Errorf(pcm.TooLarge, "%s has more than %d bytes", path, most)
	}
	return body, nil
}
