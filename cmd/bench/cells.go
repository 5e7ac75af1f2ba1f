package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// concurrencies are the numbers of callers that are measured, with the number of
// commands that are signed for each: more than are acknowledged in the time.
var concurrencies = []struct {
	callers, commands int
	target            [3]float64 // times etcd: no, one and two signatures; 0: none
}{
	{1, 8_000, [3]float64{1.1, 1, 0}},
	{64, 100_000, [3]float64{2.5, 1.5, 0}},
	{1024, 150_000, [3]float64{5, 1.5, 0}},
}

// cells compares the commit of commands in a cell with puts of etcd, in turns.
func (b *bench) cells(ctx context.Context) error {
	fmt.Printf("cells: commands of a remote caller, three voters in three processes, fsync on; beside three of etcd; %d rounds of %s\n", b.rounds, b.each)
	etcd, err := b.startEtcd(ctx)
	if err != nil {
		fmt.Printf("  NO ETCD HERE: %v\n  nothing is compared\n", err)
	} else {
		defer etcd.stop()
	}
	troops := map[int]*troop{}
	for _, checks := range b.checks {
		t, err := b.troop(ctx, 3, func(p *plan) {
			p.Checks, p.Store = checks, b.store
			if p.Profile != "" {
				p.Profile = fmt.Sprintf("%s%d-", p.Profile, checks)
			}
		})
		if err != nil {
			return err
		}
		defer t.stop()
		troops[checks] = t
		if _, err := t.caller.order(order{Do: "load", Load: loading{Callers: 64, Commands: 5_000, For: time.Second}}); err != nil { // warms up
			return err
		}
		for _, p := range t.all() {
			if _, err := p.order(order{Do: "profile"}); err != nil {
				return err
			}
		}
	}
	for _, c := range concurrencies {
		if b.callers > 0 && c.callers != b.callers {
			continue
		}
		ratios := map[int][]float64{}
		for round := range b.rounds {
			var beside float64
			if etcd != nil {
				r, err := etcd.load(ctx, c.callers, b.each)
				if err != nil {
					return fmt.Errorf("etcd: %w", err)
				}
				beside = float64(r.Acknowledged) / r.Seconds
				figure(fmt.Sprintf("%d callers, round %d: etcd, puts of 400 bytes", c.callers, round+1), rate(r), "")
			}
			for _, checks := range b.checks {
				entries, err := troops[checks].entries()
				if err != nil {
					return err
				}
				before, err := troops[checks].usage()
				if err != nil {
					return err
				}
				a, err := troops[checks].caller.order(order{Do: "load", Load: loading{Callers: c.callers, Commands: c.commands, For: b.each}})
				if err != nil {
					return err
				}
				r := a.Report
				after, err := troops[checks].usage()
				if err != nil {
					return err
				}
				now, err := troops[checks].entries()
				if err != nil {
					return err
				}
				cost := fmt.Sprintf("; %.0f µs of CPU each, at the voters; %.1f in an entry",
					float64(after.minus(before).cpu.Microseconds())/float64(max(r.Acknowledged, 1)), float64(r.Acknowledged)/float64(max(now-entries, 1)))
				name := fmt.Sprintf("  commands of %d bytes, %s", r.Bytes, signatures(checks))
				if beside == 0 {
					figure(name, rate(r), cost[2:])
					continue
				}
				ratio := float64(r.Acknowledged) / r.Seconds / beside
				ratios[checks] = append(ratios[checks], ratio)
				figure(name, rate(r), fmt.Sprintf("%.2f × etcd", ratio)+cost)
			}
		}
		for _, checks := range b.checks {
			if n := len(ratios[checks]); n > 0 {
				target := ""
				if c.target[checks] > 0 {
					target = fmt.Sprintf("target ≥ %.1f ×", c.target[checks])
				}
				figure(fmt.Sprintf("%d callers, %s: median", c.callers, signatures(checks)), fmt.Sprintf("%.2f × etcd", median(ratios[checks])), target)
			}
		}
	}
	return nil
}

func signatures(n int) string {
	return [...]string{"no signature checked", "one signature", "two signatures"}[n]
}

func rate(r report) string {
	return fmt.Sprintf("%.0f/s  p50 %.2f  p99 %.2f ms", float64(r.Acknowledged)/r.Seconds, r.P50MS, r.P99MS)
}

// etcdCluster is three members of etcd on loopback.
type etcdCluster struct {
	program   string
	endpoints []string
	members   []*exec.Cmd
}

// startEtcd builds etcd from its module, which is fetched once, and starts three members.
func (b *bench) startEtcd(ctx context.Context) (_ *etcdCluster, err error) {
	e := &etcdCluster{program: b.etcd}
	if e.program == "" {
		e.program = filepath.Join(b.dir, "etcd")
		build := exec.CommandContext(ctx, "go", "build", "-o", e.program, ".")
		build.Dir = "cmd/bench/etcd"
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("it can't be built: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	defer func() {
		if err != nil {
			e.stop()
		}
	}()
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	var initial []string
	for i := range 3 {
		initial = append(initial, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[i]))
		e.endpoints = append(e.endpoints, fmt.Sprintf("http://127.0.0.1:%d", ports[3+i]))
	}
	for i := range 3 {
		dir, err := os.MkdirTemp(b.dir, "etcd-")
		if err != nil {
			return nil, err
		}
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			return nil, err
		}
		defer log.Close()
		own := fmt.Sprintf("http://127.0.0.1:%d", ports[i])
		cmd := exec.Command(e.program, "server", "--name", fmt.Sprint("m", i), "--data-dir", filepath.Join(dir, "data"),
			"--listen-peer-urls", own, "--initial-advertise-peer-urls", own,
			"--listen-client-urls", e.endpoints[i], "--advertise-client-urls", e.endpoints[i],
			"--initial-cluster", strings.Join(initial, ","), "--quota-backend-bytes", "8589934592", "--log-level", "error")
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		e.members = append(e.members, cmd)
	}
	_, err = e.load(ctx, 64, time.Second) // waits until it is there, and warms up
	return e, err
}

// load puts values of 400 bytes at the leader; callers share connections, 64 of them one.
func (e *etcdCluster) load(ctx context.Context, callers int, most time.Duration) (r report, err error) {
	cmd := exec.CommandContext(ctx, e.program, "load", "-endpoints", strings.Join(e.endpoints, ","),
		"-callers", fmt.Sprint(callers), "-for", most.String(), "-conns", fmt.Sprint((callers+63)/64))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return r, fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return r, json.Unmarshal(out, &r)
}

func (e *etcdCluster) stop() {
	for _, m := range e.members {
		m.Process.Kill()
		m.Wait() // it was killed
	}
}

func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}
