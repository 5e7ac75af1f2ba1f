package rest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// Names of archives in the store.
const (
	inputArchive  = "input.tar"
	outputArchive = "outputs.tar"
)

const maxLife = 7 * 24 * time.Hour // of a URL that opens an object

func (b *backend) openStore(ctx context.Context, cc client.Config, vars map[string]any) (*client.Store, error) {
	d := b.d.Data
	if d == nil || d.Store != "s3" {
		return nil, nil
	}
	var fault error
	text := func(t description.Template) string {
		s, err := t.Text(ctx, vars)
		fault = cmp.Or(fault, err)
		return s
	}
	s := client.S3{Endpoint: text(d.Endpoint), Region: text(d.Region), Bucket: text(d.Bucket), AccessKey: d.AccessKey, SecretKey: d.SecretKey}
	if fault != nil {
		return nil, pcm.Errorf(pcm.Invalid, "the data store of %s: %w", b.name, fault)
	}
	return client.NewStore(cc, s)
}

// upload brings the inputs to the store, and makes what data stands for.
func (a *attempt) upload(ctx context.Context) error {
	b, d, n := a.b, a.b.d.Data, a.n
	if err := a.haveInputs(); err != nil {
		return err
	}
	if n.Stored = n.Stored || len(a.Inputs)+len(a.Outputs) > 0; n.Stored {
		if err := a.r.notes.keep(n); err != nil {
			return err
		}
	}
	prefix, err := b.prefix(ctx, n)
	if err != nil {
		return err
	}
	data := map[string]any{
		"prefix": prefix, "in": prefix + "/in/", "out": prefix + "/out/", "pack": cmp.Or(d.Pack, "files"),
		"prefix_url": b.location(ctx, prefix+"/"), "in_url": b.location(ctx, prefix+"/in/"), "out_url": b.location(ctx, prefix+"/out/"),
	}
	inputs := []any{}
	for i, in := range a.Inputs {
		some, err := a.putInput(ctx, prefix, i, in.Path, path.Clean(in.Target))
		if err != nil {
			return pcm.Errorf(pcm.ErrorCode(err), "input %s can't be brought there: %w", in.Target, err)
		}
		inputs = append(inputs, some...)
	}
	data["inputs"] = inputs
	out := map[string]any{}
	if len(a.Outputs) > 0 {
		if out, err = a.outputPlace(ctx, prefix); err != nil {
			return pcm.Errorf(pcm.ErrorCode(err), "there is no place for outputs: %w", err)
		}
	}
	data["outputs"] = out
	streams, err := a.spillPlaces(ctx, prefix)
	if err != nil {
		return pcm.Errorf(pcm.ErrorCode(err), "there is no place for its streams: %w", err)
	}
	if streams != nil {
		data["streams"] = streams
	}
	n.Data = data
	return nil
}

// putScript brings the script to the store, for jobs that get it there.
func (a *attempt) putScript(ctx context.Context) error {
	n := a.n
	if a.b.store == nil {
		return pcm.Errorf(pcm.Invalid, "there is no store that it could be got from")
	}
	if !n.Stored {
		n.Stored = true
		if err := a.r.notes.keep(n); err != nil {
			return err
		}
	}
	prefix, err := a.b.prefix(ctx, n)
	if err != nil {
		return err
	}
	key := prefix + "/script"
	if err := a.b.store.Put(ctx, key, strings.NewReader(n.Script), int64(len(n.Script))); err != nil {
		return err
	}
	n.Link, err = a.link(ctx, http.MethodGet, key)
	return err
}

func (a *attempt) haveInputs() error {
	for _, in := range a.Inputs {
		if _, err := os.Stat(in.Path); err != nil {
			return pcm.Errorf(pcm.Internal, "an input is not there: %w", err)
		}
	}
	return nil
}

func (b *backend) prefix(ctx context.Context, n *note) (string, error) {
	t := b.d.Data.Prefix
	if !t.Given() {
		return "pcm/" + jobName(b.cfg.Instance, n.Task.Key), nil
	}
	s, err := t.Text(ctx, b.vars(n))
	if err != nil {
		return "", pcm.Errorf(pcm.Invalid, "data.prefix: %w", err)
	}
	s = strings.Trim(s, "/")
	return s, client.CheckName(s)
}

// location is where the job finds what has a key, in the words of data.scheme; ""
// where only single objects can be opened, by URLs of their own.
func (b *backend) location(ctx context.Context, key string) string {
	d := b.d.Data
	scheme := cmp.Or(d.Scheme, "s3")
	if d.Store != "s3" || scheme == "https" {
		return ""
	}
	bucket, err := d.Bucket.Text(ctx, map[string]any{"settings": b.settings})
	if err != nil {
		return ""
	}
	return scheme + "://" + bucket + "/" + key
}

// link is the location of one object.
func (a *attempt) link(ctx context.Context, method, key string) (string, error) {
	if a.b.store == nil || cmp.Or(a.b.d.Data.Scheme, "s3") != "https" {
		return a.b.location(ctx, key), nil
	}
	life := maxLife
	if a.Limit > 0 {
		life = min(life, a.Limit+24*time.Hour) // it may wait before it begins
	}
	return a.b.store.Presign(method, key, life)
}

// putInput brings one input to the store. It gives an element for each object.
func (a *attempt) putInput(ctx context.Context, prefix string, i int, local, target string) ([]any, error) {
	d := a.b.d.Data
	info, err := os.Stat(local)
	if err != nil {
		return nil, err
	}
	dir := prefix + "/in/" + expr.Text(int64(i)) + "/"
	one := map[string]any{"index": int64(i), "target": target, "folder": info.IsDir(), "dir": dir, "dir_url": a.b.location(ctx, dir)}
	if d.Pack == "tar" {
		tmp, err := a.archive(local, target)
		if err != nil {
			return nil, err
		}
		defer tmp.close()
		return a.putObject(ctx, one, dir+inputArchive, tmp.file, tmp.size)
	}
	if info.IsDir() && a.b.store != nil {
		one["key"], one["url"] = dir, one["dir_url"]
		return []any{one}, a.b.store.PutTree(ctx, local, strings.TrimSuffix(dir, "/"))
	}
	if !info.IsDir() {
		f, err := os.Open(local)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return a.putObject(ctx, one, dir+path.Base(target), f, info.Size())
	}
	// Stores that take one object after the other.
	root, err := os.OpenRoot(local)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var all []any
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := root.Stat(name)
		if err != nil || !info.Mode().IsRegular() {
			return cmp.Or(err, error(pcm.Errorf(pcm.Invalid, "%s is not a regular file", name)))
		}
		if len(all) >= client.MaxObjects {
			return pcm.Errorf(pcm.TooLarge, "it has more than %d files", client.MaxObjects)
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		each := maps.Clone(one)
		each["target"], each["folder"] = path.Join(target, name), false
		some, err := a.putObject(ctx, each, dir+name, f, info.Size())
		all = append(all, some...)
		return err
	})
	return all, err
}

// putObject brings one object to the store and says in one where it is.
func (a *attempt) putObject(ctx context.Context, one map[string]any, key string, r io.ReaderAt, size int64) ([]any, error) {
	one["key"], one["size"] = key, size
	if a.b.store != nil {
		if err := a.b.store.Put(ctx, key, r, size); err != nil {
			return nil, err
		}
		url, err := a.link(ctx, http.MethodGet, key)
		one["url"] = url
		return []any{one}, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil {
		return nil, err
	}
	object := map[string]any{"name": key, "size": size, "sha256": hex.EncodeToString(h.Sum(nil)), "output": false}
	t := a.b.d.Data.Upload
	if t == nil {
		return nil, pcm.Errorf(pcm.Invalid, "the description has no data.upload")
	}
	given, where, err := a.transfer(ctx, t, object)
	if err != nil {
		return nil, err
	}
	if _, err := a.b.http.Upload(ctx, where, r, size); err != nil {
		return nil, err
	}
	if t.Done != nil {
		vars := a.b.vars(a.n)
		vars["object"], vars["given"] = object, given
		if _, err := a.b.call(ctx, t.Done, vars); err != nil {
			return nil, err
		}
	}
	maps.Copy(one, given)
	if one["url"] == nil && a.b.d.Data.Download != nil {
		_, from, err := a.transfer(ctx, a.b.d.Data.Download, object)
		if err != nil {
			return nil, err
		}
		one["url"] = from.URL
	}
	return []any{one}, nil
}

// transfer asks the back end for a URL.
func (a *attempt) transfer(ctx context.Context, t *description.Transfer, object map[string]any) (given map[string]any, where client.Transfer, err error) {
	vars := a.b.vars(a.n)
	vars["object"] = object
	said, err := a.b.call(ctx, &t.Call, vars)
	if err != nil {
		return nil, where, err
	}
	with := said.in(vars)
	if where.URL, err = a.b.address(ctx, t.URL, with); err != nil || where.URL == "" {
		return nil, where, pcm.Errorf(pcm.Unavailable, "its answer holds no URL where the description looks for it")
	}
	where.Method, where.Header = t.Method, http.Header{}
	for _, k := range slices.Sorted(maps.Keys(t.Headers)) {
		v, err := t.Headers[k].Eval(ctx, with)
		if err != nil {
			return nil, where, err
		}
		if v != nil {
			where.Header.Set(k, expr.Text(v))
		}
	}
	given = map[string]any{}
	for _, k := range slices.Sorted(maps.Keys(t.Give)) {
		if given[k], err = t.Give[k].Eval(ctx, with); err != nil {
			return nil, where, err
		}
	}
	return given, where, nil
}

// address is text, of up to 8 KiB: URLs are long where they hold a signature.
func (b *backend) address(ctx context.Context, x description.Expression, vars map[string]any) (string, error) {
	v, err := x.Eval(ctx, vars)
	if s := expr.Text(v); err == nil && len(s) <= 8<<10 {
		return s, nil
	}
	return "", cmp.Or(err, error(pcm.Errorf(pcm.TooLarge, "it is over 8 KiB")))
}

// outputPlace is where the job is to leave its outputs.
func (a *attempt) outputPlace(ctx context.Context, prefix string) (map[string]any, error) {
	key := prefix + "/out/" + outputArchive
	out := map[string]any{"key": key, "dir": prefix + "/out/", "dir_url": a.b.location(ctx, prefix+"/out/")}
	if a.b.store != nil {
		url, err := a.link(ctx, http.MethodPut, key)
		out["url"] = url
		return out, err
	}
	if t := a.b.d.Data.Upload; t != nil {
		given, where, err := a.transfer(ctx, t, outputObject(key))
		if err != nil {
			return nil, err
		}
		headers := map[string]any{}
		for k := range where.Header {
			headers[k] = where.Header.Get(k)
		}
		out["url"], out["headers"] = where.URL, headers
		maps.Copy(out, given)
	}
	return out, nil
}

func outputObject(key string) map[string]any {
	return map[string]any{"name": key, "size": int64(0), "sha256": "", "output": true}
}

// fetch brings the outputs into the working folder, trying again while the back
// end is away.
func (a *attempt) fetch(ctx context.Context) error {
	for wait := minWait; ; wait = min(2*wait, maxBackOff) {
		err := a.fetchOnce(ctx)
		if err == nil || !isAway(err) || !pause(ctx, wait) {
			return err
		}
	}
}

func (a *attempt) fetchOnce(ctx context.Context) error {
	d := a.b.d.Data
	if d == nil || a.n.Data == nil {
		return nil
	}
	if err := a.clear(); err != nil {
		return err
	}
	out, _ := a.n.Data["outputs"].(map[string]any)
	key := expr.Text(out["key"])
	if a.b.store != nil && d.Pack != "tar" {
		dir := strings.TrimSuffix(expr.Text(out["dir"]), "/")
		_, _, err := a.b.store.GetTree(ctx, dir, a.Work, a.OutputCap)
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(a.Work), "outputs-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	most := 2*a.OutputCap + 16<<20
	if a.b.store != nil {
		_, err = a.b.store.Get(ctx, key, tmp, most)
	} else if d.Download == nil {
		return nil
	} else {
		var where client.Transfer
		if _, where, err = a.transfer(ctx, d.Download, outputObject(key)); err == nil {
			_, err = a.b.http.Download(ctx, where, tmp, most)
		}
	}
	if isAbsent(err) || pcm.ErrorCode(err) == pcm.NotFound {
		return nil // it left none
	}
	if err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return unpack(tmp, a.Work, a.Task)
}

// clear empties the working folder of what an earlier try has left.
func (a *attempt) clear() error {
	old, err := os.ReadDir(a.Work)
	for _, e := range old {
		err = errors.Join(err, os.RemoveAll(filepath.Join(a.Work, e.Name())))
	}
	return err
}

// object reads an object of the store as a text.
func (a *attempt) object(ctx context.Context, key description.Template, vars map[string]any) (string, error) {
	name, err := key.Text(ctx, vars)
	if err != nil || a.b.store == nil {
		return "", cmp.Or(err, error(pcm.Errorf(pcm.Invalid, "a log is an object, and there is no store that speaks S3")))
	}
	var text strings.Builder
	most := a.OutputCap
	if most <= 0 {
		most = maxLog
	}
	_, err = a.b.store.Get(ctx, name, &text, min(most+1<<20, maxLog))
	if pcm.ErrorCode(err) == pcm.NotFound {
		return "", nil
	}
	return text.String(), err
}

const maxLog pcm.Bytes = 1 << 30

// discard deletes the attempt's objects.
func (b *backend) discard(ctx context.Context, n *note) error {
	d := b.d.Data
	if d == nil {
		return nil
	}
	if b.store != nil {
		prefix, err := b.prefix(ctx, n)
		if err != nil {
			return err
		}
		return b.store.DeleteTree(ctx, prefix)
	}
	if d.Discard == nil || n.Data == nil {
		return nil
	}
	objects, _ := n.Data["inputs"].([]any)
	objects = append(slices.Clone(objects), n.Data["outputs"])
	for _, o := range objects {
		m, _ := o.(map[string]any)
		if m["key"] == nil {
			continue
		}
		vars := b.vars(n)
		object := maps.Clone(m)
		object["name"] = m["key"]
		vars["object"] = object
		if _, err := b.call(ctx, d.Discard, vars); err != nil && !isAbsent(err) {
			return err
		}
	}
	return nil
}
