// Command etcd is what PCM's cells are measured against: a member of an etcd
// cluster, and the load on one.
//
//	etcd server ARG…            what the etcd program does with ARG…
//	etcd load -endpoints A,B …  puts by many callers, then one line of JSON
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: etcd server|load …")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "server":
		etcdmain.Main(append([]string{"etcd"}, os.Args[2:]...))
	case "load":
		if err := load(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "etcd load:", err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: etcd server|load …")
		os.Exit(2)
	}
}

// report is the outcome of one load.
type report struct {
	Acknowledged int     `json:"acknowledged"`
	Seconds      float64 `json:"seconds"`
	P50MS        float64 `json:"p50_ms"`
	P99MS        float64 `json:"p99_ms"`
}

// load puts values for some seconds; each caller waits for its answer before it goes on.
func load(args []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	endpoints := flags.String("endpoints", "", "client addresses, separated by commas; the leader is asked")
	callers := flags.Int("callers", 1, "at a time")
	size := flags.Int("size", 400, "bytes of a value")
	most := flags.Duration("for", 3*time.Second, "how long")
	conns := flags.Int("conns", 1, "gRPC connections, shared by the callers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	leader, err := leaderOf(strings.Split(*endpoints, ","))
	if err != nil {
		return err
	}
	clients := make([]*clientv3.Client, max(1, *conns))
	for i := range clients {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{leader}, DialTimeout: 10 * time.Second})
		if err != nil {
			return err
		}
		defer c.Close()
		clients[i] = c
	}
	ctx, cancel := context.WithTimeout(context.Background(), *most+time.Minute)
	defer cancel()
	value := make([]byte, *size)
	for i := range value {
		value[i] = byte('a' + rand.IntN(26))
	}
	for _, c := range clients { // connects
		if _, err := c.Put(ctx, "warm", string(value)); err != nil {
			return err
		}
	}
	var n atomic.Int64
	var failed atomic.Pointer[error]
	took := make([][]time.Duration, *callers)
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range *callers {
		wg.Go(func() {
			c := clients[i%len(clients)]
			for time.Since(begun) < *most && failed.Load() == nil {
				at := time.Now()
				if _, err := c.Put(ctx, fmt.Sprintf("key/%d", n.Add(1)), string(value)); err != nil {
					failed.Store(&err)
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(begun)
	if err := failed.Load(); err != nil {
		return *err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	at := func(q float64) float64 {
		return float64(all[min(len(all)-1, int(q*float64(len(all))))].Microseconds()) / 1000
	}
	return json.NewEncoder(os.Stdout).Encode(report{len(all), elapsed.Seconds(), at(0.5), at(0.99)})
}

// leaderOf waits until one of the members leads: asked directly, it answers soonest.
func leaderOf(endpoints []string) (string, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second})
	if err != nil {
		return "", err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		for _, e := range endpoints {
			if st, err := c.Status(ctx, e); err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId {
				return e, nil
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return "", fmt.Errorf("none of %s leads", strings.Join(endpoints, ", "))
		}
	}
}
