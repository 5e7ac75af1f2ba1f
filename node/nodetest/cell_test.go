package nodetest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm/node/nodetest"
)

// TestCellRecoveredFromLostQuorum: two of three voters are gone for good. The
// third goes on with what it has, on a person's word, and says so in the ledger;
// one of the lost, whose folder is gone, is taken in again.
func TestCellRecoveredFromLostQuorum(t *testing.T) {
	t.Parallel()
	m, anna, bert, carl := three(t)
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	threeVote(t, anna)
	if r := anna.PCM("cell", "recover", "--yes"); r.Code != 3 || !strings.Contains(r.Stderr, "nothing to recover") {
		t.Fatalf("a cell that is well: %+v", r)
	}
	goOnAlone(t, anna, bert, carl)
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)

	nodetest.Eventually(t, "the recovery stands in the ledger", func(context.Context) error {
		if r := anna.PCM("ledger", "records", "--limit", "0"); !strings.Contains(r.Stdout, "recovered") {
			return errors.New(r.Stderr)
		}
		return nil
	})

	if err := os.RemoveAll(filepath.Join(carl.Dir, "cell")); err != nil {
		t.Fatal(err)
	}
	if err := carl.Start(); err != nil {
		t.Fatal(err)
	}
	if r := anna.PCM("cell", "add", "carl"); r.Code != 0 {
		t.Fatalf("add: %+v", r)
	}
	nodetest.Eventually(t, "carl is a replica", func(ctx context.Context) error {
		st, err := carl.Status(ctx)
		if err == nil && (st.Role != "replica" || !st.Ready) {
			err = fmt.Errorf("it is a %s: %s", st.Role, st.Reason)
		}
		return err
	})
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	m.Verify()
}

// TestLeftBehindByRecovery: two of three voters are lost, the third goes on. The two come up
// with their old folders after all: they take no part any more, both sides say so, and nothing that was
// done on the recovered side is lost. Then they join it, and what they had stays as evidence.
func TestLeftBehindByRecovery(t *testing.T) {
	t.Parallel()
	for _, together := range []bool{true, false} {
		t.Run(fmt.Sprintf("together=%t", together), func(t *testing.T) {
			t.Parallel()
			m, anna, bert, carl := three(t)
			anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
			threeVote(t, anna)
			goOnAlone(t, anna, bert, carl)
			since := anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)

			stopped := func(p *nodetest.Peer) {
				t.Helper()
				began := time.Now()
				nodetest.Eventually(t, p.Name+" takes no part any more", func(ctx context.Context) error {
					st, err := p.Client.Status(ctx)
					if err == nil && (st.Ready || st.Leader != "" || !strings.Contains(st.Reason, "recovered without this peer") || !strings.Contains(strings.Join(st.Warnings, " "), "ALARM: anna recovered this cell")) {
						err = fmt.Errorf("it is ready %t: %s; %q", st.Ready, st.Reason, st.Warnings)
					}
					return err
				})
				t.Logf("%s: %s after its start", p.Name, time.Since(began))
			}
			for _, p := range []*nodetest.Peer{bert, carl} {
				if err := p.Start(); err != nil {
					t.Fatal(err)
				}
				if !together {
					stopped(p)
				}
			}
			for _, p := range []*nodetest.Peer{bert, carl} {
				stopped(p)
				if r := p.PCM("cell", "set", "max_members", "9"); r.Code == 0 || !strings.Contains(r.Stderr, "pcm cell rejoin") {
					t.Errorf("a command at %s: %+v", p.Name, r)
				}
				if r := p.PCM("cell", "members"); !strings.Contains(r.Stdout, "pcm cell rejoin") || strings.Contains(r.Stdout, "too few") || !strings.Contains(r.Stdout, p.Name+" ") {
					t.Errorf("the members, as %s sees them: %+v", p.Name, r)
				}
				if r := p.PCM("doctor"); r.Code == 0 || !strings.Contains(r.Stdout, "the cell was recovered without this peer") || strings.Contains(r.Stdout, "bring the voters back") {
					t.Errorf("doctor at %s: %+v", p.Name, r)
				}
				if r := p.PCM("cell", "recover", "--yes"); r.Code != 3 || !strings.Contains(r.Stderr, "--refuse") {
					t.Errorf("another recovery at %s: %+v", p.Name, r)
				}
			}
			nodetest.Eventually(t, "anna raises the alarm about both", func(ctx context.Context) error {
				st, err := anna.Status(ctx)
				if all := strings.Join(st.Warnings, "\n"); err == nil && (!st.Ready || !strings.Contains(all, "ALARM: bert is up") || !strings.Contains(all, "ALARM: carl is up")) {
					err = fmt.Errorf("it warns of %q", st.Warnings)
				}
				return err
			})
			if r := anna.PCM("doctor"); r.Code == 0 || !strings.Contains(r.Stdout, "bert is up with its old folder") {
				t.Errorf("doctor: %+v", r)
			}
			for _, p := range m.Peers {
				nodetest.Eventually(t, p.Name+" keeps what proves it", func(context.Context) error {
					notices, _ := filepath.Glob(filepath.Join(p.Dir, "recoveries", "*", "notice.json"))
					if heads, _ := filepath.Glob(filepath.Join(p.Dir, "recoveries", "*", "*.checkpoint")); len(notices) != 1 || len(heads) < 2 {
						return fmt.Errorf("it has %q, %q", notices, heads)
					}
					return nil
				})
			}
			if got := anna.Done(since.ID); got.Paid != since.Paid {
				t.Errorf("what was done since is %+v, was %+v", got, since)
			}

			for _, p := range []*nodetest.Peer{bert, carl} {
				if r := p.PCM("cell", "rejoin", "--yes"); r.Code != 0 {
					t.Fatalf("rejoin: %+v", r)
				}
			}
			threeVote(t, anna)
			for _, p := range m.Peers {
				nodetest.Eventually(t, p.Name+" is well", func(ctx context.Context) error {
					st, err := p.Status(ctx)
					if err == nil && (!st.Ready || strings.Contains(strings.Join(st.Warnings, " "), "ALARM")) {
						err = fmt.Errorf("ready %t: %s; %q", st.Ready, st.Reason, st.Warnings)
					}
					return err
				})
			}
			bert.Done(bert.Send(nodetest.Command(1, "true"), "").ID)
			if kept, _ := filepath.Glob(filepath.Join(carl.Dir, "recoveries", "left-*", "cell", "raft.db")); len(kept) != 1 {
				t.Errorf("of the old folder there is %q", kept)
			}
			m.Verify()
		})
	}
}

// goOnAlone kills two of three voters, and has the third recover the cell.
func goOnAlone(t *testing.T, p *nodetest.Peer, lost ...*nodetest.Peer) {
	t.Helper()
	for _, l := range lost {
		l.Kill()
	}
	nodetest.Eventually(t, p.Name+" may go on alone", func(context.Context) error {
		if r := p.PCM("cell", "recover", "--dry-run"); !strings.Contains(r.Stdout, "Goes on") {
			return errors.New(r.Stdout + r.Stderr)
		}
		return nil
	})
	if r := p.PCM("cell", "recover", "--yes", "--reason", "both halls burnt"); r.Code != 0 {
		t.Fatalf("recover: %+v", r)
	}
}

// threeVote waits until three peers vote.
func threeVote(t *testing.T, p *nodetest.Peer) {
	t.Helper()
	nodetest.Eventually(t, "three peers vote", func(context.Context) error {
		if r := p.PCM("cell", "members"); strings.Count(r.Stdout, "votes")+strings.Count(r.Stdout, "leads") < 3 {
			return errors.New(r.Stdout + r.Stderr)
		}
		return nil
	})
}

// TestRestoredVoterIsTakenInAgain: a voter that comes back from a backup, older
// than what it voted and stored since, is made a replica first, fetches what it
// missed, and sells and buys as before.
func TestRestoredVoterIsTakenInAgain(t *testing.T) {
	t.Parallel()
	m, anna, _, carl := three(t)
	before, err := carl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.Dir, "carl.backup")
	if r := carl.PCM("backup", file); r.Code != 0 {
		t.Fatalf("backup: %+v", r)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v", info.Mode(), err)
	}
	j := carl.Send(nodetest.Command(1, "echo since the backup"), "")
	carl.Done(j.ID)
	carl.Kill()
	if r := carl.PCM("restore", file); r.Code == 0 || !strings.Contains(r.Stderr, "is not empty") {
		t.Errorf("over what is there: %+v", r)
	}
	if err := os.RemoveAll(carl.Dir); err != nil {
		t.Fatal(err)
	}
	if r := carl.PCM("restore", file); r.Code != 0 {
		t.Fatalf("restore: %+v", r)
	}
	carl.Up()
	after, err := carl.Status(t.Context())
	if err != nil || after.ID != before.ID || after.Account != before.Account || after.Cell != before.Cell {
		t.Errorf("it is %+v, %v", after, err)
	}
	nodetest.Eventually(t, "carl has its history again, and its vote", func(ctx context.Context) error {
		got, err := carl.Job(ctx, string(j.ID))
		if err == nil && got.Counts.Done != 1 {
			err = fmt.Errorf("the job is %+v", got)
		}
		if err != nil {
			return err
		}
		if r := anna.PCM("cell", "members"); strings.Count(r.Stdout, "votes")+strings.Count(r.Stdout, "leads") < 3 {
			err = errors.New(r.Stdout + r.Stderr)
		}
		return err
	})
	carl.Done(carl.Send(nodetest.Command(1, "true"), "").ID)
	m.Verify()
}

// TestLonePeerRestored: a peer without others goes on from its backup, and from a
// snapshot of its cell, with a ledger that is good and says so; its root key may
// lie elsewhere meanwhile.
func TestLonePeerRestored(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.002", 0)})
	anna := m.Peer("anna")
	run := func(code int, args ...string) nodetest.Result {
		t.Helper()
		r := anna.PCM(args...)
		if r.Code != code {
			t.Fatalf("%v: %+v", args, r)
		}
		return r
	}
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	backup, snapshot, key := filepath.Join(m.Dir, "backup"), filepath.Join(m.Dir, "snapshot"), filepath.Join(m.Dir, "key")
	run(0, "backup", backup, "--root-key=false")
	run(0, "root-key", "export", key)
	if r := run(3, "root-key", "remove", "--exported", key); !strings.Contains(r.Stderr, "in use") {
		t.Errorf("while the node runs: %+v", r)
	}
	lost := anna.Send(nodetest.Command(1, "true"), "").ID
	anna.Done(lost)
	if _, err := anna.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(anna.Dir); err != nil {
		t.Fatal(err)
	}
	run(0, "restore", backup, "--alone", "--yes")
	if r := run(0, "root-key", "status"); !strings.Contains(r.Stdout, "not here") {
		t.Errorf("the root key: %+v", r)
	}
	anna.Up()
	if _, err := anna.Job(t.Context(), string(lost)); err == nil {
		t.Error("a job from after the backup is there")
	}
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	m.Verify()

	run(0, "cell", "snapshot", "save", snapshot)
	if r := run(0, "cell", "snapshot", "inspect", snapshot); !strings.Contains(r.Stdout, "anna") {
		t.Errorf("the snapshot: %+v", r)
	}
	if _, err := anna.Stop(); err != nil {
		t.Fatal(err)
	}
	run(0, "root-key", "import", key)
	run(0, "cell", "snapshot", "restore", snapshot, "--yes")
	anna.Up()
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	m.Verify()
}
