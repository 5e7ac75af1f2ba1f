package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node"
	"github.com/jointcloud/pcm/node/api"
)

// getter reads a file of a log, of at most so many bytes.
type getter func(ctx context.Context, path string, most int64) ([]byte, error)

// nodeLog reads the log of a cell from a node's own API.
func nodeLog(c *api.Client, cell pcm.CellID) getter {
	return func(ctx context.Context, path string, most int64) ([]byte, error) {
		return c.LogFile(ctx, cell, path, most)
	}
}

// urlLog reads a log by its public prefix, as any outsider.
func urlLog(prefix string) (getter, error) {
	u, err := url.Parse(prefix)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		return nil, pcm.Errorf(pcm.Invalid, "%q is not the URL of a log, like http://HOST:PORT%s", prefix, strings.TrimSuffix(api.LogPath("CELL"), "/"))
	}
	base := strings.TrimSuffix(prefix, "/") + "/"
	client := &http.Client{Timeout: time.Minute}
	return func(ctx context.Context, path string, most int64) ([]byte, error) {
		const tries = 4
		for n := 1; ; n++ {
			body, later, err := fetch(ctx, client, base+path, most)
			if !later || n == tries {
				return body, err
			}
			wait := time.NewTimer(time.Duration(n) * time.Second)
			select {
			case <-wait.C:
			case <-ctx.Done():
				wait.Stop()
				return nil, pcm.Errorf(pcm.Unavailable, "interrupted: %w", ctx.Err())
			}
		}
	}, nil
}

// maxFault bounds the body of an answer that says what is wrong, in bytes.
const maxFault = 16 << 10

// fetch asks once. later tells that the server wants to be asked again in a moment.
func fetch(ctx context.Context, client *http.Client, url string, most int64) (body []byte, later bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, false, pcm.Errorf(pcm.Invalid, "can't ask for %s: %w", url, err)
	}
	resp, err := client.Do(req)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return nil, false, pcm.Errorf(pcm.Unavailable, "nobody answers at %s (%w): is the address right, and does that peer serve its log there (log_listen)?", req.URL.Host, op.Err)
	}
	if err != nil {
		return nil, false, pcm.Errorf(pcm.Unavailable, "can't read %s: %w", url, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, false, pcm.Errorf(pcm.NotFound, "there is no %s: is it the prefix of a log, ending in %q?", url, "/log")
	case resp.StatusCode != http.StatusOK:
		later = resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusTooManyRequests
		var e api.ErrorBody
		if json.NewDecoder(io.LimitReader(resp.Body, maxFault)).Decode(&e) == nil && e.Fault.Message != "" {
			// A node says when it is worth asking again.
			return nil, later && resp.Header.Get("Retry-After") != "", pcm.Errorf(pcm.Unavailable, "%s: %s", url, plain(e.Fault.Message))
		}
		return nil, later, pcm.Errorf(pcm.Unavailable, "%s: the server answered %s", url, resp.Status)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, false, pcm.Errorf(pcm.Unavailable, "can't read %s: %w", url, err)
	}
	if int64(len(body)) > most {
		return nil, false, pcm.Errorf(pcm.Invalid, "%s has more than %d bytes", url, most)
	}
	return body, false, nil
}

func (g getter) checkpoint(ctx context.Context) ([]byte, error) {
	return g(ctx, "checkpoint", tlog.MaxCheckpoint)
}

// reader reads tiles. It keeps the few tiles above the leaves, and the last one
// of the leaves, which are wanted over and over.
func (g getter) reader() tlog.Reader {
	const most = 256
	kept := map[tlog.Tile][]byte{}
	var last tlog.Tile
	return func(ctx context.Context, t tlog.Tile) ([]byte, error) {
		if data, ok := kept[t]; ok {
			return data, nil
		}
		limit := int64(tlog.MaxTile)
		if t.Entries {
			limit = tlog.MaxBundle
		}
		data, err := g(ctx, t.Path(), limit)
		if err != nil && t.Width < tlog.Width && pcm.ErrorCode(err) == pcm.NotFound {
			data, err = g.full(ctx, t, limit)
		}
		if err != nil || t.Entries {
			return data, err
		}
		if t.Level == 0 {
			delete(kept, last)
			last = t
		}
		if len(kept) >= most {
			clear(kept)
		}
		kept[t] = data
		return data, nil
	}
}

// full reads the full tile in place of a partial one, which a log may drop.
func (g getter) full(ctx context.Context, t tlog.Tile, limit int64) ([]byte, error) {
	width := t.Width
	t.Width = tlog.Width
	data, err := g(ctx, t.Path(), limit)
	if err != nil {
		return nil, err
	}
	if !t.Entries {
		return data[:min(len(data), width*tlog.HashSize)], nil
	}
	entries, err := tlog.SplitBundle(data, tlog.Width)
	if err != nil {
		return nil, err
	}
	var part []byte
	for _, e := range entries[:width] {
		if part, err = tlog.AppendEntry(part, e); err != nil {
			return nil, err
		}
	}
	return part, nil
}

// archiveFlag is the help of --archive.
const archiveFlag = "`DIR` or URL of an archive of the cell's records, for those that peers have removed after their time"

// with reads what an archive has of a cell's records from there.
func (g getter) with(archive string, cell pcm.CellID) (getter, error) {
	var bundle func(ctx context.Context, t tlog.Tile, most int64) ([]byte, error)
	if strings.Contains(archive, "://") {
		from, err := urlLog(archive)
		if err != nil {
			return nil, err
		}
		dirs := []string{"", string(cell) + "/"} // the second: it is the folder above that of the cell, as peers are given it
		bundle = func(ctx context.Context, t tlog.Tile, most int64) (data []byte, err error) {
			for i, dir := range dirs {
				if data, err = from(ctx, dir+t.Path(), most); err == nil {
					dirs = dirs[i : i+1]
				}
				if pcm.ErrorCode(err) != pcm.NotFound {
					break
				}
			}
			return data, err
		}
	} else {
		if info, err := os.Stat(archive); err != nil || !info.IsDir() {
			return nil, pcm.Errorf(pcm.Invalid, "%s is not a folder with an archive, nor the URL of one", archive)
		}
		from := node.NewLedgerArchive(archive, cell)
		bundle = func(_ context.Context, t tlog.Tile, _ int64) ([]byte, error) { return from.Bundle(t.Index) }
	}
	return func(ctx context.Context, path string, most int64) ([]byte, error) {
		t, err := tlog.ParsePath(path)
		if err == nil && t.Entries && t.Width == tlog.Width {
			data, lacks := bundle(ctx, t, most)
			if pcm.ErrorCode(lacks) != pcm.NotFound {
				return data, lacks
			}
			if data, err = g(ctx, path, most); err != nil {
				err = pcm.Errorf(pcm.ErrorCode(err), "records %d to %d are not in the archive %s, nor in the log: %w", t.Index*tlog.Width, (t.Index+1)*tlog.Width-1, archive, err)
			}
			return data, err
		}
		return g(ctx, path, most)
	}, nil
}

// withArchive reads the log of the node's own cell, with an archive if one is named.
func (a *app) withArchive(ctx context.Context, get getter, client *api.Client, archive string) (getter, error) {
	if archive == "" {
		return get, nil
	}
	st, err := client.Status(ctx)
	if err != nil {
		return nil, err
	}
	return get.with(archive, st.Cell)
}

// firstBundle is the first bundle of entries of the node's own cell that can be read.
func firstBundle(ctx context.Context, tree *tlog.Tree, client *api.Client) (int, error) {
	_, unread := tree.Entries(ctx, 0)
	if pcm.ErrorCode(unread) != pcm.Unavailable {
		return 0, unread
	}
	cells, err := client.Cells(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range cells.Items {
		if !c.Away && c.Removed > 0 {
			return int(c.Removed / tlog.Width), nil
		}
	}
	return 0, unread
}

// tree reads the head of a log, and makes the tree of it.
func (g getter) tree(ctx context.Context) (*tlog.Tree, []byte, error) {
	note, err := g.checkpoint(ctx)
	if err != nil {
		return nil, nil, err
	}
	head, err := tlog.ParseCheckpoint(note)
	if err != nil {
		return nil, nil, err
	}
	return tlog.NewTree(head, g.reader()), note, nil
}

// parseKeys reads verifier keys: each is one, or names a file with one a line.
func parseKeys(args []string) ([]tlog.Key, error) {
	var keys []tlog.Key
	for _, arg := range args {
		lines := arg
		if raw, err := readBounded(arg); err == nil {
			lines = string(raw)
		} else if !errors.Is(err, os.ErrNotExist) && !strings.Contains(arg, "+") {
			return nil, pcm.Errorf(pcm.Invalid, "can't read the keys: %w", err)
		}
		for line := range strings.Lines(lines) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			k, err := tlog.ParseKey(line)
			if err != nil {
				return nil, err
			}
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// seenPath is where it is noted which checkpoint of a log an outsider saw last.
func (a *app) seenPath(cell pcm.CellID) string {
	dir, _ := a.dataDir()
	return filepath.Join(dir, "seen", string(cell)+".checkpoint")
}

// writeSeen notes a checkpoint, whole or not at all.
func writeSeen(path string, note []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return pcm.Errorf(pcm.Internal, "can't note the checkpoint: %w", err)
	}
	tmp := path + ".tmp"
	err := os.WriteFile(tmp, note, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't note the checkpoint: %w", err)
	}
	return nil
}
