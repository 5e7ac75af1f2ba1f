package rules_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/rules"
)

// ask puts a question with facts to rules, as a seller does with its private ones.
func ask(t *testing.T, private bool, f rules.Facts, list ...pcm.Rule) rules.Verdict {
	t.Helper()
	var b rules.Book
	return b.Judge(list, private, question(f))
}

func question(f rules.Facts) *rules.Question {
	return &rules.Question{
		Job: rules.Of(f.Job), Buyer: rules.Of(f.Buyer), Standing: rules.Of(f.Standing), Pool: rules.Of(f.Pool), Time: rules.Of(f.Time),
		Peers: []rules.Variable{rules.Of(f.Peer)}, ID: "local-process", Each: pcm.Resources{CPU: 1000, Memory: 1 << 30},
		Whole: pcm.Resources{CPU: 8000, Memory: 8 << 30}, Slots: 8,
	}
}

func percent(n int) *int { return &n }

func TestJudge(t *testing.T) {
	gpu := rules.Facts{Job: rules.Job{GPU: 2, Program: "train"}, Buyer: rules.Buyer{Name: "anna"}}
	many := pcm.Rule{Name: "few-gpus", Accept: "job.gpu < 2", Reason: "at most one GPU, ${buyer.name} wants ${job.gpu}"}
	for _, tt := range []struct {
		name    string
		rule    pcm.Rule
		private bool
		facts   rules.Facts
		want    string
	}{
		{"holds", many, false, rules.Facts{}, ""},
		{"refuses", many, false, gpu, "rule few-gpus: at most one GPU, anna wants 2"},
		{"is about others", pcm.Rule{Name: "x", When: "buyer.name == 'bert'", Accept: "false"}, false, gpu, ""},
		{"without reason", pcm.Rule{Name: "x", Accept: "false"}, false, gpu, "rule x"},
		{"of another pool", pcm.Rule{Name: "x", Pools: []string{"gpu-*"}, Accept: "false"}, false, gpu, ""},
		{"of this pool", pcm.Rule{Name: "x", Pools: []string{"gpu-*", "local-*"}, Accept: "false"}, false, gpu, "rule x"},
		{"by the clock", pcm.Rule{Name: "night", Accept: "time.hour < 8"}, true, rules.Facts{Time: rules.Time{Hour: 9}}, "rule night"},
		{"can't be read", pcm.Rule{Name: "x", Accept: "time.hour < 8"}, false, gpu, "rule x can't be judged for this job: in expression \"time.hour < 8\", at 1:1: undeclared reference to 'time' (in container '')"},
		{"fails", pcm.Rule{Name: "x", Accept: "job.nothing"}, false, gpu, `rule x can't be judged for this job: expression "job.nothing": no such key: nothing`},
		{"private, fails", pcm.Rule{Name: "x", Accept: "job.nothing"}, true, gpu, "rule x can't be judged for this job"},
		{"is no truth value", pcm.Rule{Name: "x", Accept: "job.gpu"}, false, gpu, `rule x can't be judged for this job: expression "job.gpu" gives a number, not true or false`},
		{"data", pcm.Rule{Name: "stays", Data: "peer.flow == 'in' || peer.labels.?region.orValue('') == 'eu'", Reason: "only to the EU"}, false, rules.Facts{Peer: rules.Peer{Flow: "out"}}, "rule stays: only to the EU"},
		{"what is told is cut", pcm.Rule{Name: "x", Accept: "false", Reason: "a\x1b[31m\n" + strings.Repeat("é", 300)}, false, gpu, "rule x: a [31m " + strings.Repeat("é", 95) + "…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if v := ask(t, tt.private, tt.facts, tt.rule); v.Refused != tt.want {
				t.Errorf("refused: %q, want %q", v.Refused, tt.want)
			}
		})
	}
}

func TestPriceAndLimit(t *testing.T) {
	friend := rules.Facts{Buyer: rules.Buyer{Account: "acc-friend"}}
	list := []pcm.Rule{
		{Name: "friends", When: "buyer.account == 'acc-friend'", Percent: percent(80)},
		{Name: "others", Percent: percent(150)},
	}
	if v := ask(t, false, friend, list...); v.Percent != 80 {
		t.Errorf("a friend pays %d %%", v.Percent)
	}
	if v := ask(t, false, rules.Facts{}, list...); v.Percent != 150 || v.Room < 1<<30 {
		t.Errorf("others: %+v", v)
	}
	for _, tt := range []struct {
		limit    pcm.Limit
		tasks    int
		room     int
		why      string
		excluded bool
	}{
		{pcm.Limit{Tasks: 3}, 1, 2, "rule l: at most 3 tasks of pool local-process for one account at once", false},
		{pcm.Limit{Tasks: 3}, 5, 0, "rule l: at most 3 tasks of pool local-process for one account at once", false},
		{pcm.Limit{Share: 50}, 1, 3, "rule l: at most 50 % of pool local-process for one account at once", false},
		{pcm.Limit{CPU: 2500, Memory: 1 << 40}, 0, 2, "rule l: at most 2.5 cpu, 1TiB of pool local-process for one account at once", false},
		{pcm.Limit{Memory: 1 << 20}, 0, 0, "rule l: at most 1MiB of pool local-process for one account at once", true},
	} {
		q := question(rules.Facts{})
		q.Tasks, q.Reserved = tt.tasks, q.Each.Times(tt.tasks)
		var b rules.Book
		v := b.Judge([]pcm.Rule{{Name: "l", Limit: &tt.limit}}, false, q)
		if tt.excluded {
			if v.Refused != tt.why {
				t.Errorf("%+v: %+v", tt.limit, v)
			}
		} else if v.Room != tt.room || v.Limit != tt.why || v.Refused != "" {
			t.Errorf("%+v: %+v, want room for %d and %q", tt.limit, v, tt.room, tt.why)
		}
	}
}

// Rules of strangers cost no more than they may, and are no way in.
func TestHostileRules(t *testing.T) {
	nested := "[1,2,3,4,5,6,7,8,9,10]"
	long := rules.Facts{Job: rules.Job{Program: strings.Repeat("a", 4000), Env: make([]string, 4096)}}
	for source, told := range map[string]string{
		nested + ".all(a, " + nested + ".all(b, " + nested + ".all(c, " + nested + ".all(d, a + b + c + d > 0))))": "cost",
		nested + ".map(a, job.program + job.program).join('')":                                                     "undeclared",
		"job.env.all(e, job.env.all(f, f == e))":                                                                   "cost",
		strings.Repeat("(", 1000):                                                                                  "recursion",
		"job" + strings.Repeat(".a", 3000):                                                                         "over the bound",
		`"`:                                                                                                        "can't be judged",
		`buyer.replace("a", "b")`:                                                                                  "undeclared",
		"{'a': job}.map(k, k)[0] == 'a' || 1":                                                                      "can't be judged",
	} {
		v := ask(t, false, long, pcm.Rule{Name: "x", Accept: source})
		if !strings.HasPrefix(v.Refused, "rule x can't be judged") || !strings.Contains(v.Refused, told) || v.Cost > rules.MaxCost || !pcm.Printable(v.Refused) {
			t.Errorf("%.60s: %+v, want %q", source, v, told)
		}
	}
	// Nor does what they tell, or many of them.
	dear := "[0,1,2,3,4,5,6,7,8,9]"
	dear = dear + ".map(a, " + dear + ".map(b, a + b)).size() > 10 ? 'x' : ''"
	tells := pcm.Rule{Name: "x", Accept: "false", Reason: strings.Repeat("${"+dear+"}", 60)}
	if v := ask(t, false, long, tells); !strings.Contains(v.Refused, "too much to evaluate") || v.Cost > rules.MaxSpent+rules.MaxCost {
		t.Errorf("%+v", v)
	}
	var many []pcm.Rule
	for range 200 {
		many = append(many, pcm.Rule{Name: "x", Accept: "(" + dear + ") == ''"})
	}
	if v := ask(t, false, long, many...); !strings.Contains(v.Refused, "too much to evaluate") || v.Cost > rules.MaxSpent+rules.MaxCost {
		t.Errorf("%+v", v)
	}
	// A costly pattern costs what CEL says, not what a backtracking engine would take.
	if v := ask(t, false, long, pcm.Rule{Name: "x", Accept: `job.program.matches("(a*)*(a*)*(a*)*b")`}); v.Refused != "rule x" || v.Cost < 100 {
		t.Errorf("%+v", v)
	}
}

// What is kept compiled is bounded, and asking anew comes to the same.
func TestBookIsBounded(t *testing.T) {
	var b rules.Book
	for i := range 1500 {
		list := []pcm.Rule{{Name: "x", Accept: fmt.Sprintf("job.gpu != %d || %q == ''", i, strings.Repeat("y", 300))}}
		if v := b.Judge(list, false, question(rules.Facts{Job: rules.Job{GPU: int64(i)}})); v.Refused == "" {
			t.Fatalf("rule %d doesn't refuse", i)
		}
	}
	if n := b.Kept(); n == 0 || n > 1000 {
		t.Errorf("%d expressions are kept", n)
	}
}

// Many ask the same book at once.
func TestBookIsShared(t *testing.T) {
	var b rules.Book
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			q := question(rules.Facts{Job: rules.Job{GPU: int64(i)}})
			for k := range 50 {
				v := b.Judge([]pcm.Rule{{Name: "x", Accept: fmt.Sprintf("job.gpu > 3 || %d < 0", k), Reason: "${job.gpu}"}}, false, q)
				if want := fmt.Sprintf("rule x: %d", i); i > 3 && v.Refused != "" || i <= 3 && v.Refused != want {
					t.Errorf("%d: %q", i, v.Refused)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkJudge(b *testing.B) {
	var book rules.Book
	list := []pcm.Rule{
		{Name: "eu", Accept: `has(job.labels.region) && job.labels.region == "eu" || buyer.own`, Reason: "x"},
		{Name: "friends", When: `buyer.account in ["a", "b", "c"]`, Percent: percent(80)},
		{Name: "fair", When: "!buyer.own", Limit: &pcm.Limit{Share: 50}},
	}
	q := question(rules.Facts{Buyer: rules.Buyer{Account: "c", Own: true}})
	for b.Loop() {
		if v := book.Judge(list, false, q); v.Percent != 80 {
			b.Fatal(v)
		}
	}
}
