package kubernetes

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

const (
	transferMost = 6 * time.Hour // of one stream of files
	maxWordsBack = 4096          // of what a helper says
	maxEntries   = 1 << 20       // of one stream
)

// unpack takes the inputs, and makes room for where they are mounted.
const unpack = `umask 0
tar -xf - -C ` + inputDir + ` || exit 1
for d; do mkdir -p "` + workDir + `/$d" || exit 1; done
touch ` + markReady

// sendInputs streams the inputs to the helper that waits for them.
func (r *Runner) sendInputs(ctx context.Context, t adapters.Task, pod string) error {
	ctx, cancel := context.WithTimeout(ctx, transferMost)
	defer cancel()
	argv := []string{"sh", "-c", unpack, "pcm"}
	for _, in := range t.Inputs {
		if d := path.Dir(path.Clean(in.Target)); d != "." {
			argv = append(argv, d)
		}
	}
	pr, pw := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := packInputs(pw, t.Inputs)
		pw.CloseWithError(err)
		packed <- err
	}()
	var said bytes.Buffer
	code, err := r.c.exec(ctx, command{pod: pod, container: inputContainer, argv: argv, stdin: pr, stderr: &limited{&said, maxWordsBack}})
	pr.CloseWithError(errWrite)
	if perr := <-packed; perr != nil && !errors.Is(perr, errWrite) {
		return perr
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("tar ended with %d: %s", code, strings.TrimSpace(said.String()))
	}
	return nil
}

// packInputs writes the inputs as a tar stream: each under its number. Everybody may read them;
// nobody may write them, by the way they are mounted.
func packInputs(w io.Writer, inputs []adapters.Mount) error {
	tw := tar.NewWriter(w)
	for i, in := range inputs {
		root, err := filepath.EvalSymlinks(in.Path)
		if err != nil {
			return err
		}
		err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			return packFile(tw, p, path.Join(strconv.Itoa(i), filepath.ToSlash(rel)))
		})
		if err != nil {
			return err
		}
	}
	return tw.Close()
}

func packFile(tw *tar.Writer, file, name string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, ModTime: info.ModTime().Truncate(time.Second), Format: tar.FormatGNU}
	switch {
	case info.Mode().IsRegular():
		h.Typeflag, h.Size, h.Mode = tar.TypeReg, info.Size(), 0o444|int64(info.Mode().Perm()&0o111)
		if h.Mode&0o111 != 0 {
			h.Mode |= 0o111
		}
	case info.IsDir():
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
		h.Name += "/"
	case info.Mode()&fs.ModeSymlink != 0:
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		if h.Linkname, err = os.Readlink(file); err != nil {
			return err
		}
	default:
		return nil // nothing that can be an input
	}
	if err := tw.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(tw, f, info.Size()); err != nil {
		return &os.PathError{Op: "read", Path: file, Err: err}
	}
	return nil
}

// pack writes what there is of the declared outputs.
const pack = `cd ` + workDir + ` || exit 1
n=$#; while [ $n -gt 0 ]; do f=$1; shift; n=$((n-1)); [ ! -L "$f" ] && [ -e "$f" ] && set -- "$@" "$f"; done
[ $# -eq 0 ] && exit 0
chmod -R u+rwX "$@" 2>/dev/null
exec tar -cf - "$@"`

// fetchOutputs brings the declared outputs into the attempt's working folder
// here, and lets the helper go.
func (r *Runner) fetchOutputs(ctx context.Context, t *supervisor.Run, p *podView) error {
	ctx, cancel := context.WithTimeout(ctx, transferMost)
	defer cancel()
	argv := []string{"sh", "-c", pack, "pcm"}
	for _, out := range t.Outputs {
		argv = append(argv, "./"+path.Clean(out))
	}
	var last error
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		err := r.fetch(ctx, t, p.name, argv)
		if err == nil || errors.Is(err, errTooMuch) {
			break
		}
		if last = err; wait >= maxWait || ctx.Err() != nil {
			return last
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(wait):
		}
	}
	// It ends in any case with its pod, which is deleted soon.
	if _, err := r.c.exec(ctx, command{pod: p.name, container: outputContainer, argv: []string{"kill", "-USR1", "1"}}); err != nil {
		r.log.Debug("the helper was not told to end", "attempt", t.Key.String(), "err", err)
	}
	return nil
}

func (r *Runner) fetch(ctx context.Context, t *supervisor.Run, pod string, argv []string) error {
	root, err := os.OpenRoot(t.Work)
	if err != nil {
		return err
	}
	defer root.Close()
	pr, pw := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := unpackInto(root, pr, int64(t.OutputCap)+1<<20)
		pr.CloseWithError(err)
		unpacked <- err
	}()
	var said bytes.Buffer
	code, err := r.c.exec(ctx, command{pod: pod, container: outputContainer, argv: argv, stdout: pw, stderr: &limited{&said, maxWordsBack}})
	pw.CloseWithError(err)
	uerr := <-unpacked
	switch {
	case errors.Is(uerr, errTooMuch):
		return uerr
	case err != nil:
		return err
	case uerr != nil:
		return uerr
	case code != 0:
		return fmt.Errorf("tar ended with %d: %s", code, strings.TrimSpace(said.String()))
	}
	return nil
}

var errTooMuch = errors.New("more than may be written")

// unpackInto unpacks files, folders and links; all else in the stream is passed over. It stops
// after most bytes: what is there then is over the cap for whoever measures it.
func unpackInto(root *os.Root, in io.Reader, most int64) error {
	tr := tar.NewReader(in)
	for range maxEntries {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, in) // the padding
			return err
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if name == "." {
			continue
		}
		if !filepath.IsLocal(name) || strings.ContainsAny(name, "\\\x00") {
			return pcm.Errorf(pcm.Invalid, "%q leads out of the working folder", h.Name)
		}
		if d := path.Dir(name); d != "." {
			if err := root.MkdirAll(d, 0o700); err != nil {
				return err
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o700)
		case tar.TypeReg:
			if most -= h.Size; most < 0 {
				// As much as is needed to be seen as too much.
				writeFile(root, name, io.LimitReader(tr, most+h.Size), 0o600)
				return errTooMuch
			}
			err = writeFile(root, name, tr, 0o600|fs.FileMode(h.Mode)&0o100)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name) // whoever reads results follows none that leads out
			if errors.Is(err, fs.ErrExist) {
				err = nil
			}
		case tar.TypeLink:
			err = root.Link(path.Clean(h.Linkname), name)
			if errors.Is(err, fs.ErrExist) {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
	return errTooMuch
}

func writeFile(root *os.Root, name string, in io.Reader, mode fs.FileMode) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Close())
}

// limited keeps the first n bytes.
type limited struct {
	to *bytes.Buffer
	n  int
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.n - l.to.Len(); room > 0 {
		l.to.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// said is a buffer for what a helper says.
type said struct{ bytes.Buffer }

func (s *said) Write(p []byte) (int, error) {
	if room := maxWordsBack - s.Len(); room > 0 {
		s.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// relay passes a tar stream on, without what could lead out of its folder.
func relay(w io.Writer, in io.Reader) error {
	tr, tw := tar.NewReader(in), tar.NewWriter(w)
	for range maxEntries {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return tw.Close()
		}
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "this is no tar stream: %w", err)
		}
		if !filepath.IsLocal(path.Clean(h.Name)) {
			return pcm.Errorf(pcm.Invalid, "%q leads out of the folder", h.Name)
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
			return pcm.Errorf(pcm.Invalid, "%q is neither a file nor a folder", h.Name)
		}
		out := &tar.Header{Typeflag: h.Typeflag, Name: h.Name, Size: h.Size, Mode: h.Mode & 0o777, ModTime: h.ModTime}
		if err := tw.WriteHeader(out); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
	return pcm.Errorf(pcm.TooLarge, "more than %d files", maxEntries)
}
