package client

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/jointcloud/pcm"
)

const maxTransfers = 4 // objects of a folder at once

// PutTree stores a local file under a name, or what is in a local folder below
// it. Links are followed as far as they stay in the folder. Empty folders leave
// nothing: object stores have none.
func (s *Store) PutTree(ctx context.Context, local, name string) error {
	if err := CheckName(name); err != nil {
		return s.c.local(err)
	}
	info, err := os.Stat(local)
	if err != nil {
		return s.c.local(pcm.Errorf(pcm.Internal, "can't store %s: %w", local, err))
	}
	if !info.IsDir() {
		f, err := os.Open(local)
		if err != nil {
			return s.c.local(pcm.Errorf(pcm.Internal, "can't store it: %w", err))
		}
		defer f.Close()
		return s.Put(ctx, name, f, info.Size())
	}
	root, err := os.OpenRoot(local)
	if err != nil {
		return s.c.local(pcm.Errorf(pcm.Internal, "can't store the folder: %w", err))
	}
	defer root.Close()
	files, err := s.files(root)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxTransfers)
	for _, file := range files {
		g.Go(func() error {
			f, err := root.Open(filepath.FromSlash(file))
			if err != nil {
				return s.c.local(pcm.Errorf(pcm.Internal, "can't store the folder: %w", err))
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil || !info.Mode().IsRegular() {
				return s.c.local(pcm.Errorf(pcm.Invalid, "%s is not a regular file: it can't be stored", file))
			}
			return s.Put(ctx, path.Join(name, file), f, info.Size())
		})
	}
	return g.Wait()
}

// files lists the regular files of a folder, and links to such.
func (s *Store) files(root *os.Root) ([]string, error) {
	var files []string
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		info, err := root.Stat(name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return pcm.Errorf(pcm.Invalid, "%s is not a regular file: it can't be stored", name)
		}
		if files = append(files, name); len(files) > MaxObjects {
			return pcm.Errorf(pcm.TooLarge, "the folder has more than %d files: pack them", MaxObjects)
		}
		return nil
	})
	if err != nil {
		return nil, s.c.local(asCode(pcm.Internal, err))
	}
	return files, nil
}

// asCode is err with a code, its own if it has one.
func asCode(code pcm.Code, err error) error {
	var e *pcm.Error
	if errors.As(err, &e) {
		return e
	}
	return pcm.Errorf(code, "%w", err)
}

// GetTree brings the objects below a name into a local folder, which must be
// there, by their relative names. Nothing that is there is overwritten. It returns
// how many files and bytes there were; over the limit the error has code TooLarge,
// and nothing was fetched.
func (s *Store) GetTree(ctx context.Context, name, folder string, limit pcm.Bytes) (int, pcm.Bytes, error) {
	objects, err := s.List(ctx, name, MaxObjects)
	if err != nil {
		return 0, 0, err
	}
	var total pcm.Bytes
	for _, o := range objects {
		if pcm.Bytes(o.Size) > limit-total {
			return 0, 0, s.c.local(pcm.Errorf(pcm.TooLarge, "what is below %s has over %s", name, limit))
		}
		total += pcm.Bytes(o.Size)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return 0, 0, s.c.local(pcm.Errorf(pcm.Internal, "can't fetch into the folder: %w", err))
	}
	defer root.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxTransfers)
	for _, o := range objects {
		g.Go(func() error {
			if dir := path.Dir(o.Name); dir != "." {
				if err := root.MkdirAll(filepath.FromSlash(dir), 0o755); err != nil {
					return s.c.local(pcm.Errorf(pcm.Internal, "can't fetch %s: %w", o.Name, err))
				}
			}
			f, err := root.OpenFile(filepath.FromSlash(o.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if err != nil {
				return s.c.local(pcm.Errorf(pcm.Internal, "can't fetch %s: %w", o.Name, err))
			}
			_, err = s.Get(ctx, path.Join(name, o.Name), f, pcm.Bytes(o.Size))
			if cerr := f.Close(); err == nil && cerr != nil {
				err = s.c.local(pcm.Errorf(pcm.Internal, "can't write %s: %w", o.Name, cerr))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	return len(objects), total, nil
}

// maxRounds bounds the pages, of up to 1,000 objects, that DeleteTree lists.
const maxRounds = 1000

// DeleteTree removes all objects below a name, and that of the name itself: however
// many they are and whatever they are called, as who ran there may have made any.
// What can't be addressed is left, and told of by an error of code Refused.
func (s *Store) DeleteTree(ctx context.Context, name string) error {
	if err := s.Delete(ctx, name); err != nil {
		return err
	}
	var odd string
	for range maxRounds {
		page, _, err := s.page(ctx, url.Values{"list-type": {"2"}, "prefix": {name + "/"}, "max-keys": {"1000"}, "encoding-type": {"url"}})
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(maxTransfers)
		some := false
		for _, e := range page.Contents {
			key := e.Key
			if page.EncodingType == "url" {
				if key, err = url.QueryUnescape(key); err != nil {
					key = e.Key
				}
			}
			if !addressable(key, name+"/") {
				odd = key
				continue
			}
			some = true
			g.Go(func() error { return s.remove(ctx, key) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if !some || !page.IsTruncated {
			break
		}
	}
	if odd != "" {
		return s.c.local(pcm.Errorf(pcm.Refused, "%.80q can't be deleted: its name may mean another place", odd))
	}
	return nil
}

// addressable tells whether a key means nothing else on its way to the store.
func addressable(key, prefix string) bool {
	below, ok := strings.CutPrefix(key, prefix)
	if !ok || len(key) > 1024 {
		return false
	}
	below = strings.TrimSuffix(below, "/") // what stands for a folder
	for _, part := range strings.Split(below, "/") {
		if part == "." || part == ".." || part == "" && below != "" {
			return false
		}
	}
	return true
}
