package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// backendsAct is the demo of four sites with four back ends.
func (s *stage) backendsAct(docs, manifest string) []act {
	var tasks []api.Task
	return []act{
		func(context.Context) error { return missing() },
		func(ctx context.Context) error { return s.sites(ctx, manifest) },
		func(ctx context.Context) (err error) { tasks, err = s.spread(ctx, docs); return err },
		func(ctx context.Context) error { return s.natively(ctx, tasks) },
		s.settlement,
	}
}

// sellers are the sites, with what they call their tasks.
var sellers = []struct{ name, adapter, does string }{
	{"cloud", "kubernetes", "pods of a Kubernetes cluster"},
	{"campus", "slurm", "batch jobs of a Slurm cluster"},
	{"studio", "container", "containers of a Docker engine"},
	{"edge", "process", "processes of one machine, in a sandbox"},
}

// siteCast is one role for each back end, and a buyer.
func (v *servers) siteCast() []role {
	section := map[string]string{
		"cloud": fmt.Sprintf(`  kubernetes:
    enabled: true
    kubeconfig: %s
    namespace: pcm
    helper_image: %s
    price: {per_task: "0.002"}
`, v.kube.Restricted, server.HelperImage),
		"campus": fmt.Sprintf(`  slurm:
    enabled: true
    conf: %s
    partitions: [main]
    keep_env: [SLURM_JOB_ID]   # tasks may see this
    allow_others: true         # not only to the own account
    price: {per_task: "0.001"}
`, v.slurm.Conf),
		"studio": fmt.Sprintf(`  container:
    enabled: true
    socket: %s
    default_image: %s
    pull: never
    price: {per_task: "0.0015"}
`, v.docker.Socket, image),
	}
	var cast []role
	for _, seller := range sellers {
		process := "  process: {enabled: false}\n"
		if seller.adapter == "process" {
			process = "  process:\n    allow_unsandboxed: true   # where neither bubblewrap nor the kernel's own means work\n    price: {per_task: \"0.0005\"}\n"
		}
		cast = append(cast, role{seller.name, "sells " + seller.does, "# " + seller.name + " sells " + seller.does + ".\nadapters:\n" + process + "  wasm: {enabled: false}\n" + section[seller.name]})
	}
	return append(cast, role{"carl", "sells nothing, and buys", "# carl sells nothing.\nadapters:\n  process: {enabled: false}\n  wasm: {enabled: false}\n"})
}

// sites starts the servers and a peer for each.
func (s *stage) sites(ctx context.Context, manifest string) error {
	title("1. Four sites with what they already run, and a buyer")
	began := time.Now()
	if err := s.servers.open(ctx, manifest); err != nil {
		return err
	}
	tell("Started for this demo, in %s: Kubernetes %s (control plane, one kubelet with containerd),", since(began), server.KubernetesVersion)
	tell("Slurm (controller, %d nodes) and dockerd. Each gets a peer of an account of its own; nothing is", s.servers.slurm.Nodes)
	tell("installed in the clusters. All data is below %s.", s.dir)
	cast := s.servers.siteCast()
	fmt.Printf("\ncampus$ cat campus.yaml\n%s\n", cast[1].config)
	if err := s.raise(ctx, cast); err != nil {
		return err
	}
	if err := await(ctx, func(ctx context.Context) error { return s.whole(ctx, len(sellers)) }); err != nil {
		return err
	}
	tell("\ncarl, who sells nothing, sees what the others sell:")
	_, err := s.show(ctx, "carl", "offers", "-o", "wide")
	return err
}

const spreadParts = 40

const spreadSpec = `name: wordcount
strategy: spread      # over all that fit, instead of the cheapest
steps:
  - name: count
    count: 40         # tasks: each counts the words of every fortieth line
    inputs: [{source: docs}]
    outputs: [words.txt]
    env: {LC_ALL: C}
    time_limit: 5m
    command:
      - sh
      - -c
      - |
        for f in docs/*; do cat "$f"; echo; done |
          awk -v n="$PCM_TASK_COUNT" -v i="$PCM_TASK_INDEX" 'NR % n == i' |
          tr -cs 'A-Za-z' '\n' | tr A-Z a-z |
          awk 'NF { n[$1]++ } END { for (w in n) print n[w], w }' > words.txt
        echo "on $(uname -n), as user $(id -u), with $(ls /bin | wc -l) programs in /bin${SLURM_JOB_ID:+, as Slurm job $SLURM_JOB_ID}"
`

// spread runs one job on all four back ends, and checks what it brought.
func (s *stage) spread(ctx context.Context, docs string) ([]api.Task, error) {
	title("2. One job, on all four")
	files, want, err := s.copyDocs(docs)
	if err != nil {
		return nil, err
	}
	tell("It counts the words of %d documents. Nothing in its spec says what a site runs.", files)
	if err := s.file("wordcount.yaml", spreadSpec); err != nil {
		return nil, err
	}
	tell("\nWhere would it go, and why?")
	if _, err := s.show(ctx, "carl", "job", "explain", "wordcount.yaml"); err != nil {
		return nil, err
	}
	job, err := s.submit(ctx, "wordcount.yaml", "--wait")
	if err != nil {
		return nil, err
	}
	_, tasks, err := s.settled(ctx, job.ID)
	if err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"job", "describe", pcm.Short(job.ID)}, {"job", "get", pcm.Short(job.ID), "results"}} {
		if _, err := s.show(ctx, "carl", args...); err != nil {
			return nil, err
		}
	}
	if err := s.sameCount(spreadParts, want); err != nil {
		return nil, err
	}
	tell("\nThe same spec, as a task at each site found itself:")
	for _, seller := range sellers {
		for _, t := range tasks {
			if t.SellerName != seller.name {
				continue
			}
			said, err := os.ReadFile(filepath.Join(s.dir, "results", "count", strconv.Itoa(t.Index), "stdout"))
			if err != nil {
				return nil, err
			}
			tell("  %-8s task %2d  %s", seller.name, t.Index, strings.TrimSpace(string(said)))
			break
		}
	}
	ran := shares(tasks)
	var text []string
	for _, seller := range sellers {
		if ran[seller.name] == 0 {
			err = fmt.Errorf("%s ran none: %v", seller.name, ran)
		}
		text = append(text, fmt.Sprintf("%s %d", seller.name, ran[seller.name]))
	}
	return tasks, check(err, "all four sites took part: %s tasks", strings.Join(text, ", "))
}

// shares counts tasks by who ran the attempt that counts.
func shares(tasks []api.Task) map[string]int {
	ran := map[string]int{}
	for _, t := range tasks {
		ran[t.SellerName]++
	}
	return ran
}

// natively holds what the ledger says against the back ends' own books.
func (s *stage) natively(ctx context.Context, tasks []api.Task) error {
	title("3. What the back ends themselves say")
	pcmSays := shares(tasks)
	err := await(ctx, func(ctx context.Context) error {
		docker, slurm, kube, err := s.servers.ran(ctx)
		if err == nil && (docker != pcmSays["studio"] || slurm != pcmSays["campus"] || kube != pcmSays["cloud"]) {
			err = fmt.Errorf("there were %d containers, %d jobs of Slurm and %d pods; the ledger has %v", docker, slurm, kube, pcmSays)
			if docker > pcmSays["studio"] || slurm > pcmSays["campus"] || kube > pcmSays["cloud"] {
				err = nodetest.Final(err)
			}
		}
		return err
	})
	if err := check(err, "Kubernetes started %d pods, Slurm completed %d jobs, Docker started %d containers: as many as the ledger says", pcmSays["cloud"], pcmSays["campus"], pcmSays["studio"]); err != nil {
		return err
	}
	err = await(ctx, s.servers.empty)
	return check(err, "none of them is left there")
}

// settlement shows who owes whom.
func (s *stage) settlement(ctx context.Context) error {
	title("4. The books, as campus keeps them")
	for _, args := range [][]string{{"trades"}, {"balances"}, {"ledger", "verify"}} {
		if _, err := s.show(ctx, "campus", args...); err != nil {
			return err
		}
	}
	trades, err := s.peer("campus").Client().Trades(ctx, api.Query{})
	if err != nil {
		return err
	}
	with := map[string]bool{}
	for _, t := range trades.Items {
		with[t.Adapter] = t.Paid != "0"
	}
	for _, seller := range sellers {
		if !with[seller.adapter] {
			err = errors.Join(err, fmt.Errorf("no paid trade is of adapter %s", seller.adapter))
		}
	}
	if err := check(err, "each of the four was paid for what it ran"); err != nil {
		return err
	}
	return s.books(ctx, "campus")
}
