// Fakecloud starts one of the fake clouds, for people who want to play and for
// tests of other modules:
//
//	go run ./adapters/rest/fake/cmd/fakecloud modelarts --listen 127.0.0.1:8080
//
// When it can be reached it prints one line of JSON: where, and with which access
// data. It runs until it is interrupted. Its clouds run what they are told, as its
// user, with nothing that keeps it in: listen on loopback addresses only, unless you know
// who else is in the network.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cloud is one that can be started.
type cloud struct {
	about string
	// data is whether it has an object store, which listens on an address of its own.
	data  bool
	start func(place) (*started, error)
}

// place is where a cloud is to be.
type place struct {
	dir      string // for its files
	url      string // where it is reached
	storeURL string // where its object store is
}

// started is a cloud that is there.
type started struct {
	api, store http.Handler
	access     map[string]string // what who uses it must know
	close      func() error
}

// clouds are all there are; each has a file that adds it.
var clouds = map[string]cloud{}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fakecloud:", err)
		os.Exit(1)
	}
}

func usage() error {
	var b strings.Builder
	b.WriteString("usage: fakecloud CLOUD [--listen ADDRESS] [--store ADDRESS] [--dir FOLDER]; clouds are:")
	for _, name := range slices.Sorted(maps.Keys(clouds)) {
		fmt.Fprintf(&b, "\n  %-10s %s", name, clouds[name].about)
	}
	return errors.New(b.String())
}

// run starts a cloud, says on out where it is, and serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return usage()
	}
	c, ok := clouds[args[0]]
	if !ok {
		return usage()
	}
	flags := flag.NewFlagSet("fakecloud "+args[0], flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address of the API")
	store := flags.String("store", "127.0.0.1:0", "address of the object store, if it has one")
	dir := flags.String("dir", "", "folder for its files; without it one that is deleted at the end")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return usage()
	}
	if *dir == "" {
		made, err := os.MkdirTemp("", "fakecloud-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(made)
		*dir = made
	}
	api, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	defer api.Close()
	p := place{dir: *dir, url: "http://" + api.Addr().String()}
	listeners := []net.Listener{api}
	if c.data {
		l, err := net.Listen("tcp", *store)
		if err != nil {
			return err
		}
		defer l.Close()
		p.storeURL = "http://" + l.Addr().String()
		listeners = append(listeners, l)
	}
	if p.dir, err = filepath.Abs(p.dir); err != nil {
		return err
	}
	s, err := c.start(p)
	if err != nil {
		return err
	}
	defer s.close()
	return serve(ctx, s, listeners, out, p, args[0])
}

func serve(ctx context.Context, s *started, listeners []net.Listener, out io.Writer, p place, name string) error {
	failed := make(chan error, len(listeners))
	for i, h := range []http.Handler{s.api, s.store}[:len(listeners)] {
		srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
		defer srv.Close()
		go func() { failed <- srv.Serve(listeners[i]) }()
	}
	say := map[string]string{"cloud": name, "url": p.url, "dir": p.dir}
	if p.storeURL != "" {
		say["store"] = p.storeURL
	}
	maps.Copy(say, s.access)
	if err := json.NewEncoder(out).Encode(say); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}
