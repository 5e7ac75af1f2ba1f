package openi

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Places of data: data sets come in, outputs go out.
const (
	placeDataset = "dataset"
	placeOutput  = "output"
)

const urlTTL = time.Hour

type dataset struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Created int64  `json:"createdAt"`
}

// folder is where files of a place stand.
func (c *Cloud) folder(place, id string) string {
	return filepath.Join(c.o.Dir, place, id)
}

func (c *Cloud) createDataset(r *http.Request) (any, error) {
	var in struct{ Name string }
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if !validName(in.Name) {
		return nil, invalid("name: 1 to 64 letters, digits, - and _, beginning with a letter")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.datasets) >= maxDatasets {
		return nil, &failure{http.StatusForbidden, codeFull, "too many data sets"}
	}
	d := &dataset{ID: newID(), Name: in.Name, Version: "V1", Created: time.Now().Unix()}
	if err := os.MkdirAll(c.folder(placeDataset, d.ID), 0o755); err != nil {
		return nil, err
	}
	c.datasets[d.ID] = d
	return map[string]any{"id": d.ID, "version": d.Version}, nil
}

func (c *Cloud) listDatasets(r *http.Request) (any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []*dataset{}
	for _, d := range c.datasets {
		if key := r.URL.Query().Get("searchKey"); key == "" || contains(d.Name, key) {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *dataset) int { return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.ID, b.ID)) })
	part, err := page(r, all)
	return map[string]any{"totalSize": len(all), "datasets": part}, err
}

// uploadURL hands out where a file of a data set is to be put.
func (c *Cloud) uploadURL(r *http.Request) (any, error) {
	var in struct{ Path string }
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	c.mu.Lock()
	_, ok := c.datasets[id]
	c.mu.Unlock()
	if !ok {
		return nil, notFound("data set " + id)
	}
	if !filepath.IsLocal(in.Path) || in.Path == "." {
		return nil, invalid("path: a file within the data set")
	}
	return map[string]any{"uploadUrl": c.sign(r, http.MethodPut, placeDataset, id, in.Path)}, nil
}

func (c *Cloud) deleteDataset(r *http.Request) (any, error) {
	id := r.PathValue("id")
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.datasets[id]; !ok {
		return nil, notFound("data set " + id)
	}
	delete(c.datasets, id)
	return map[string]any{"deletedAt": time.Now().Unix()}, os.RemoveAll(c.folder(placeDataset, id))
}

// outputURL hands out where a running job may put a file beside what it leaves in its folder.
func (c *Cloud) outputURL(r *http.Request) (any, error) {
	var in struct{ Path, Method string }
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	j, err := c.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if !filepath.IsLocal(in.Path) || in.Path == "." || in.Method != http.MethodGet && in.Method != http.MethodPut {
		return nil, invalid("path: a file within the output; method: GET or PUT")
	}
	return map[string]any{"url": c.sign(r, in.Method, placeOutput, j.id, in.Path)}, nil
}

// jobOutput lists what a job has left so far, with URLs to fetch it by.
func (c *Cloud) jobOutput(r *http.Request) (any, error) {
	j, err := c.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	dir := c.folder(placeOutput, j.id)
	type file struct {
		Path        string `json:"path"`
		Size        int64  `json:"size"`
		DownloadURL string `json:"downloadUrl"`
	}
	all := []file{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it is gone meanwhile, or nothing that storage keeps
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		rel, _ := filepath.Rel(dir, path)
		all = append(all, file{Path: rel, Size: info.Size()})
		return nil
	})
	if err != nil {
		return nil, err
	}
	part, err := page(r, all)
	for i := range part {
		part[i].DownloadURL = c.sign(r, http.MethodGet, placeOutput, j.id, part[i].Path)
	}
	return map[string]any{"totalSize": len(all), "files": part}, err
}

// sign makes a URL by which one file can be put or fetched for a time.
func (c *Cloud) sign(r *http.Request, method, place, id, path string) string {
	until := strconv.FormatInt(time.Now().Add(urlTTL).Unix(), 10)
	u := url.URL{Scheme: "http", Host: r.Host, Path: "/data/" + place + "/" + id + "/" + path}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	u.RawQuery = url.Values{"expires": {until}, "signature": {c.signature(method, u.Path, until)}}.Encode()
	return u.String()
}

func (c *Cloud) signature(method, path, until string) string {
	h := hmac.New(sha256.New, c.secret)
	fmt.Fprintf(h, "%s\n%s\n%s", method, path, until)
	return hex.EncodeToString(h.Sum(nil))
}

// signed gives the file that a request's URL is good for.
func (c *Cloud) signed(w http.ResponseWriter, r *http.Request) (file string, ok bool) {
	q := r.URL.Query()
	until, err := strconv.ParseInt(q.Get("expires"), 10, 64)
	if err != nil || time.Now().Unix() > until || !hmac.Equal([]byte(q.Get("signature")), []byte(c.signature(r.Method, r.URL.Path, q.Get("expires")))) {
		http.Error(w, "the signature is wrong, or the URL has expired", http.StatusForbidden)
		return "", false
	}
	place, id, path := r.PathValue("place"), r.PathValue("id"), r.PathValue("path")
	if !filepath.IsLocal(path) || !filepath.IsLocal(id) || place != placeDataset && place != placeOutput {
		http.Error(w, "no such place", http.StatusNotFound)
		return "", false
	}
	return filepath.Join(c.folder(place, id), path), true
}

func (c *Cloud) putFile(w http.ResponseWriter, r *http.Request) {
	name, ok := c.signed(w, r)
	if !ok {
		return
	}
	if err := put(name, http.MaxBytesReader(w, r.Body, maxFile)); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// put writes a file whole or not at all.
func put(name string, from io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".put-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, from)
	if err1 := f.Chmod(0o644); err == nil {
		err = err1
	}
	if err1 := f.Close(); err == nil {
		err = err1
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func (c *Cloud) getFile(w http.ResponseWriter, r *http.Request) {
	name, ok := c.signed(w, r)
	if !ok {
		return
	}
	// A job's own links lead nowhere from here.
	f, err := os.OpenInRoot(c.folder(r.PathValue("place"), r.PathValue("id")), r.PathValue("path"))
	if err != nil {
		http.Error(w, filepath.Base(name)+" doesn't exist", http.StatusNotFound)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		http.Error(w, filepath.Base(name)+" is no file", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", info.ModTime(), f)
}
