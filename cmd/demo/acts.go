package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

func tokenOf(invitation string) (string, error) {
	var inv api.Invitation
	if err := json.Unmarshal([]byte(invitation), &inv); err != nil {
		return "", fmt.Errorf("pcm invite wrote what can't be read: %w", err)
	}
	return inv.Token, nil
}

const parts = 12 // tasks that share the words: count in the spec

const wordCountSpec = `name: wordcount
takeover: any         # another member may drive the job if carl goes away
strategy: spread      # over all that fit, instead of the cheapest
steps:
  - name: count
    count: 12         # tasks: each counts the words of every twelfth line
    inputs: [{source: docs}]
    outputs: [words.txt]
    env: {LC_ALL: C}
    command:
      - sh
      - -c
      - |
        for f in docs/*; do cat "$f"; echo; done |
          awk -v n="$PCM_TASK_COUNT" -v i="$PCM_TASK_INDEX" 'NR % n == i' |
          tr -cs 'A-Za-z' '\n' | tr A-Z a-z |
          awk 'NF { n[$1]++ } END { for (w in n) print n[w], w }' > words.txt
`

// wordCount counts the words of real documents on the mesh and here.
func (s *stage) wordCount(ctx context.Context, docs string) error {
	title("2. A real job: the words of this repository's documents")
	files, want, err := s.copyDocs(docs)
	if err != nil {
		return err
	}
	tell("%d documents go to the sellers by content: each seller gets them once. The results come back the same way.", files)
	if err := s.file("wordcount.yaml", wordCountSpec); err != nil {
		return err
	}
	job, err := s.submit(ctx, "wordcount.yaml", "--wait")
	if err != nil {
		return err
	}
	_, tasks, err := s.settled(ctx, job.ID)
	if err != nil {
		return err
	}
	if _, err := s.show(ctx, "carl", "job", "get", pcm.Short(job.ID), "results"); err != nil {
		return err
	}
	if err := s.sameCount(parts, want); err != nil {
		return err
	}
	ran := map[string]int{}
	for _, t := range tasks {
		ran[t.SellerName]++
	}
	if ran["anna"] == 0 || ran["bert"] == 0 {
		err = fmt.Errorf("%v", ran)
	}
	return check(err, "both sellers took part: anna ran %d tasks, bert %d", ran["anna"], ran["bert"])
}

// sameCount checks what the tasks of step count brought back against a count made here.
func (s *stage) sameCount(tasks int, want map[string]int) error {
	got := map[string]int{}
	for i := range tasks {
		if err := addCounts(got, filepath.Join(s.dir, "results", "count", strconv.Itoa(i), "out", "words.txt")); err != nil {
			return err
		}
	}
	sum := 0
	for _, n := range got {
		sum += n
	}
	top := slices.SortedFunc(maps.Keys(got), func(a, b string) int { return cmp.Or(got[b]-got[a], strings.Compare(a, b)) })
	tell("\nThe five most frequent words, with the tasks' counts put together:")
	for _, w := range top[:min(5, len(top))] {
		tell("  %6d  %s", got[w], w)
	}
	var err error
	if !maps.Equal(got, want) {
		err = fmt.Errorf("the mesh found %d different words, this program %d, and they differ", len(got), len(want))
	}
	return check(err, "the mesh counted %d words, %d of them different: the same as a count made here", sum, len(got))
}

// copyDocs copies the documents below a folder to the stage, and counts their words.
func (s *stage) copyDocs(from string) (files int, words map[string]int, err error) {
	to := filepath.Join(s.dir, "docs")
	if err := os.Mkdir(to, 0o700); err != nil {
		return 0, nil, err
	}
	words = map[string]int{}
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != from && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case !d.Type().IsRegular() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, w := range strings.FieldsFunc(strings.ToLower(string(text)), func(r rune) bool { return r < 'a' || r > 'z' }) {
			words[w]++
		}
		files++
		return os.WriteFile(filepath.Join(to, fmt.Sprintf("%03d-%s", files, d.Name())), text, 0o600)
	})
	if err == nil && files == 0 {
		err = fmt.Errorf("no Markdown document is below %s", from)
	}
	return files, words, err
}

// addCounts adds the lines "COUNT WORD" of a file.
func addCounts(to map[string]int, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		count, word, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			return fmt.Errorf("%s holds the line %q", path, line)
		}
		to[word] += n
	}
	return nil
}

//go:embed primes.wasm
var primes []byte

const primesSpec = `name: primes
takeover: any
steps:
  - module: primes.wasm   # 272 bytes: counts the primes below 100,000
`

// webAssembly runs a module at the only site that sells WebAssembly.
func (s *stage) webAssembly(ctx context.Context) error {
	title("3. A WebAssembly module: the same bytes run on any machine")
	if err := os.WriteFile(filepath.Join(s.dir, "primes.wasm"), primes, 0o600); err != nil {
		return err
	}
	if err := s.file("primes.yaml", primesSpec); err != nil {
		return err
	}
	tell("\nWhere would it go, and why?")
	if _, err := s.show(ctx, "carl", "job", "explain", "primes.yaml"); err != nil {
		return err
	}
	job, err := s.submit(ctx, "primes.yaml", "--wait")
	if err != nil {
		return err
	}
	_, tasks, err := s.settled(ctx, job.ID)
	if err != nil {
		return err
	}
	out, err := s.show(ctx, "carl", "job", "logs", pcm.Short(job.ID))
	if err != nil {
		return err
	}
	want := 0
	for n := 2; n < 100_000; n++ {
		if isPrime(n) {
			want++
		}
	}
	if got := strings.TrimSpace(out); got != strconv.Itoa(want) {
		err = fmt.Errorf("it found %s", got)
	}
	if err := check(err, "there are %d primes below 100,000: a count made here agrees", want); err != nil {
		return err
	}
	if tasks[0].SellerName != "bert" {
		err = fmt.Errorf("it ran at %s", tasks[0].SellerName)
	}
	return check(err, "it ran at bert, who alone sells WebAssembly")
}

func isPrime(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}

const survivorSpec = `name: survivor
takeover: any
steps:
  - command: [sh, -c, "echo begun; sleep 3; echo finished"]
`

// survive kills the peer that runs a task.
func (s *stage) survive(ctx context.Context) error {
	title("4. A seller is killed with -9 in the middle of a task")
	if err := s.file("survivor.yaml", survivorSpec); err != nil {
		return err
	}
	job, err := s.submit(ctx, "survivor.yaml")
	if err != nil {
		return err
	}
	var first api.Trade
	err = await(ctx, func(ctx context.Context) error {
		trades, err := s.carl().Trades(ctx, api.Query{Job: job.ID})
		if err != nil {
			return err
		}
		if len(trades.Items) == 0 || trades.Items[0].States[pcm.AttemptStarted] == 0 {
			return errors.New("the task has not begun")
		}
		first = trades.Items[0]
		return nil
	})
	if err != nil {
		return err
	}
	tell("The task runs at %s, the cheapest. Now that peer is killed:", first.SellerName)
	victim := s.peer(first.SellerName)
	fmt.Printf("\n%s$ kill -9 %d\n\n", victim.Name, victim.PID())
	killed := time.Now()
	victim.Kill()
	if err := s.follow(ctx, job.ID, victim.Name, killed); err != nil {
		return err
	}
	job, tasks, err := s.settled(ctx, job.ID)
	if err != nil {
		return err
	}
	took := since(killed)
	if _, err := s.show(ctx, "carl", "job", "describe", pcm.Short(job.ID)); err != nil {
		return err
	}
	out, err := s.show(ctx, "carl", "job", "logs", pcm.Short(job.ID))
	if err != nil {
		return err
	}
	if out != "begun\nfinished\n" {
		err = fmt.Errorf("it wrote %q", out)
	}
	if err := check(err, "the task completed elsewhere, %s after the kill", took); err != nil {
		return err
	}
	t := tasks[0]
	if t.Attempt != 2 || t.SellerName == victim.Name || len(t.History) != 1 || !strings.Contains(t.History[0], "did not renew") {
		err = fmt.Errorf("the task is %+v", t)
	}
	if err := check(err, "attempt 1 at %s is lost, attempt 2 at %s counts", victim.Name, t.SellerName); err != nil {
		return err
	}
	trades, err := s.carl().Trades(ctx, api.Query{Job: job.ID})
	if err != nil {
		return err
	}
	for _, tr := range trades.Items {
		lost := tr.ID == first.ID
		if lost != (tr.Paid == "0") || lost != (tr.States[pcm.AttemptLost] == 1) || !lost && (tr.Paid != job.Paid || tr.States[pcm.AttemptSettled] != 1) {
			err = fmt.Errorf("trade %+v of job %+v", tr, job)
		}
	}
	if len(trades.Items) != 2 {
		err = fmt.Errorf("it has %d trades", len(trades.Items))
	}
	return check(err, "one result is paid (%s %s), the lost attempt costs nothing", job.Paid, job.Unit)
}

// follow tells what happens to a job until it has ended.
func (s *stage) follow(ctx context.Context, id pcm.JobID, victim string, from time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := s.carl().Changes(ctx, api.ChangeFilter{Job: id})
	if err != nil {
		return err
	}
	tell("Silence is not death: the cell waits until the task's lease is over, and its supervisor at %s", victim)
	tell("ends it by then. Only then is it placed elsewhere, so that it never runs twice at once.\n")
	for c, err := range changes {
		if err != nil {
			return err
		}
		if c.Text != "" {
			tell("  +%4.1f s  %s", time.Since(from).Seconds(), c.Text)
		}
		if c.Kind == "ended" {
			return nil
		}
	}
	return ctx.Err()
}

// audit looks at the ledger from a peer that did not submit anything.
func (s *stage) audit(ctx context.Context) error {
	title("5. What anna, who submitted nothing, has on her ledger")
	if _, err := s.show(ctx, "anna", "trades"); err != nil {
		return err
	}
	if _, err := s.show(ctx, "anna", "balances"); err != nil {
		return err
	}
	if _, err := s.show(ctx, "anna", "ledger", "verify"); err != nil {
		return err
	}
	return s.books(ctx, "anna")
}

// books checks that a seller's trades and balances agree, and its ledger with carl's.
func (s *stage) books(ctx context.Context, seller string) error {
	peer := s.peer(seller).Client()
	// What the trades say was paid is what the balances say is owed.
	trades, err := peer.Trades(ctx, api.Query{})
	if err != nil {
		return err
	}
	balances, err := peer.Balances(ctx)
	if err != nil {
		return err
	}
	var paid, owed pcm.Micro
	for _, t := range trades.Items {
		m, err := pcm.ParseMicro(t.Paid)
		if err != nil {
			return err
		}
		paid += m
	}
	for _, b := range balances.Items {
		m, err := pcm.ParseMicro(b.Owed)
		if err != nil {
			return err
		}
		owed += m
	}
	if paid != owed || paid == 0 {
		err = fmt.Errorf("%s was paid", paid)
	}
	if err := check(err, "all trades together paid %s credit: that is what carl owes the sellers", owed); err != nil {
		return err
	}
	var roots []string
	err = await(ctx, func(ctx context.Context) error {
		roots = nil
		for _, name := range []string{seller, "carl"} {
			v, err := s.peer(name).Client().Verify(ctx)
			if err != nil {
				return err
			}
			if !v.OK {
				return nodetest.Final(fmt.Errorf("%s finds the ledger bad: %s", name, v.Problem))
			}
			roots = append(roots, v.Root)
		}
		if roots[0] != roots[1] {
			return fmt.Errorf("%s has %s, carl %s", seller, roots[0], roots[1])
		}
		return nil
	})
	return check(err, "%s and carl hold the same ledger, record for record, and it is good", seller)
}
