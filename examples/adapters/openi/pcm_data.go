package main

// Files to and from jobs: by URLs that the back end hands out, packed by tar.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// upload brings the inputs to where the description says.
func (b *described) upload(ctx context.Context, a *Attempt) (map[string]any, error) {
	d := b.d.Data
	if d.Store != "presigned" || d.Pack != "tar" {
		return uploadOther(ctx, b, a)
	}
	prefix := "pcm/" + b.name(a)
	data := map[string]any{"prefix": prefix, "in": prefix + "/in/", "out": prefix + "/out/", "pack": "tar"}
	inputs := []any{}
	for i, in := range a.Request.Inputs {
		info, err := os.Stat(in.Path)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "an input is not there: %v", err)
		}
		dir := fmt.Sprintf("%s/in/%d/", prefix, i)
		one := map[string]any{"index": int64(i), "target": filepath.Clean(in.Target), "folder": info.IsDir(), "dir": dir, "key": dir + "input.tar"}
		if err := b.send(ctx, a, in.Path, filepath.Clean(in.Target), one); err != nil {
			return nil, err
		}
		inputs = append(inputs, one)
	}
	data["inputs"] = inputs
	out := map[string]any{}
	if len(a.Request.Outputs) > 0 {
		key := prefix + "/out/outputs.tar"
		out["key"], out["dir"] = key, prefix+"/out/"
		given, where, err := b.transfer(ctx, a, d.Upload, map[string]any{"name": key, "size": int64(0), "sha256": "", "output": true})
		if err != nil {
			return nil, err
		}
		out["url"] = where.url
		for k, v := range given {
			out[k] = v
		}
	}
	data["outputs"] = out
	return data, nil
}

// send packs an input and uploads it.
func (b *described) send(ctx context.Context, a *Attempt, local, target string, one map[string]any) error {
	f, err := os.CreateTemp(a.folder(), "input-*")
	if err == nil {
		defer os.Remove(f.Name())
		defer f.Close()
		err = pack(f, []packed{{local, target}})
	}
	if err != nil {
		return status.Errorf(codes.Internal, "input %s can't be packed: %v", target, err)
	}
	sum := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	size, err := io.Copy(sum, f)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	object := map[string]any{"name": one["key"], "size": size, "sha256": hex.EncodeToString(sum.Sum(nil)), "output": false}
	t := b.d.Data.Upload
	given, where, err := b.transfer(ctx, a, t, object)
	if err != nil {
		return err
	}
	if err := b.move(ctx, where, "PUT", io.NewSectionReader(f, 0, size), size, nil); err != nil {
		return err
	}
	if t.Done != nil {
		if _, err := b.http().call(ctx, t.Done, b.of(a).with(Vars{"object": object, "given": given})); err != nil {
			return err
		}
	}
	one["size"], one["url"] = size, where.url
	for k, v := range given {
		one[k] = v
	}
	if b.d.Data.Download != nil && given["url"] == nil && b.d.scripted() {
		if _, from, err := b.transfer(ctx, a, b.d.Data.Download, object); err == nil {
			one["url"] = from.url
		}
	}
	return nil
}

// location is where an object is put or got.
type location struct {
	url, method string
	header      map[string]string
}

func (b *described) transfer(ctx context.Context, a *Attempt, t *Transfer, object map[string]any) (given map[string]any, where location, err error) {
	if t == nil {
		return nil, where, status.Error(codes.Internal, "the description does not say where files go")
	}
	v := b.of(a).with(Vars{"object": object})
	said, err := b.http().call(ctx, &t.Call, v)
	if err != nil {
		return nil, where, err
	}
	where.method, where.header = t.Method, map[string]string{}
	if where.url, err = t.URL.text(said.in(v)); err != nil || where.url == "" {
		return nil, where, status.Error(codes.Unavailable, "the answer holds no URL where the description looks for it")
	}
	for k, x := range t.Headers {
		if where.header[k], err = x.text(said.in(v)); err != nil {
			return nil, where, err
		}
	}
	given = map[string]any{}
	for k, x := range t.Give {
		if given[k], err = x.eval(said.in(v)); err != nil {
			return nil, where, err
		}
	}
	return given, where, nil
}

// move puts or gets an object by its URL.
func (b *described) move(ctx context.Context, where location, method string, body io.Reader, size int64, to io.Writer) error {
	if where.method != "" {
		method = where.method
	}
	r, err := http.NewRequestWithContext(ctx, method, where.url, body)
	if err != nil {
		return status.Error(codes.Internal, "the back end gave no URL")
	}
	r.ContentLength = size
	for k, v := range where.header {
		r.Header.Set(k, v)
	}
	resp, err := b.http().http.Do(r)
	if err != nil {
		return status.Error(codes.Unavailable, "the data store can't be reached: "+b.http().redact(strings.Split(err.Error(), "?")[0]))
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == 404:
		return &callError{code: codes.NotFound, text: "there is no such object", status: 404, absent: true}
	case resp.StatusCode/100 != 2:
		return status.Errorf(codes.Unavailable, "the data store answers HTTP %d", resp.StatusCode)
	case to != nil:
		if _, err := io.Copy(to, resp.Body); err != nil {
			return status.Error(codes.Unavailable, "the data broke off")
		}
	}
	return nil
}

// Outputs brings the declared outputs into the working folder.
func (b *described) Outputs(ctx context.Context, a *Attempt) error {
	if b.d.Data == nil || len(a.Request.Outputs) == 0 {
		return nil
	}
	if b.d.Data.Store != "presigned" || b.d.Data.Pack != "tar" {
		return downloadOther(ctx, b, a)
	}
	data, _ := plain(a.Note["data"]).(map[string]any)
	key := asText(path(data, "outputs", "key"))
	if key == "" {
		return nil
	}
	_, where, err := b.transfer(ctx, a, b.d.Data.Download, map[string]any{"name": key, "size": int64(0), "sha256": "", "output": true})
	if isAbsent(err) {
		return nil // it left none
	}
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(a.folder(), "outputs-*")
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	defer os.Remove(f.Name())
	defer f.Close()
	most := 2*a.Request.OutputCapBytes + 16<<20
	if err := b.move(ctx, where, "GET", nil, 0, &bounded{f, most}); err != nil {
		if isAbsent(err) {
			return nil
		}
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if err := unpack(f, a.Request.Work, a.Request.Outputs); err != nil {
		return status.Errorf(codes.Internal, "the outputs can't be unpacked: %v", err)
	}
	return nil
}

// bounded is a writer with an end.
type bounded struct {
	to   io.Writer
	left int64
}

func (w *bounded) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left < 0 {
		return 0, fmt.Errorf("it is over the cap of output")
	}
	return w.to.Write(p)
}

// discard deletes the attempt's objects.
func (b *described) discard(ctx context.Context, a *Attempt) error {
	if b.d.Data == nil || b.d.Data.Discard == nil {
		return nil
	}
	data, _ := plain(a.Note["data"]).(map[string]any)
	objects, _ := path(data, "inputs").([]any)
	for _, o := range append(objects, path(data, "outputs")) {
		m, _ := o.(map[string]any)
		if m["key"] == nil {
			continue
		}
		object := map[string]any{}
		for k, v := range m {
			object[k] = v
		}
		object["name"] = m["key"]
		if _, err := b.http().call(ctx, b.d.Data.Discard, b.of(a).with(Vars{"object": object})); err != nil && !isAbsent(err) {
			return err
		}
	}
	return nil
}
