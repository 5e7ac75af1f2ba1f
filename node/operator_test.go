package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// What an operator has set is read again, and a file that can't be understood is
// refused, with its name.
func TestOperatorFile(t *testing.T) {
	n := &Node{cfg: Config{Dir: t.TempDir()}}
	o, err := openOperator(n)
	if err != nil {
		t.Fatal(err)
	}
	price, hour := pcm.Micro(500), pcm.Micro(0)
	err = o.change(func(s *operatorSettings) error {
		s.Pools["a"] = poolRule{Cordoned: &cordon{Since: time.Unix(1e9, 0), Reason: "why"}, Cap: &poolCap{Slots: 2}, Price: &tariff{PerTask: &price, PerGPUHour: &hour}}
		s.Pools["b"] = poolRule{}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	again, err := openOperator(n)
	if err != nil {
		t.Fatal(err)
	}
	p, offered := again.offer(pcm.Pool{ID: "a", Slots: 10, Capacity: pcm.Resources{CPU: 4000}, Price: pcm.Price{Unit: "credit", PerTask: 1, PerCPUHour: 7, PerGPUHour: 8}})
	if offered || p.Slots != 2 || p.Capacity.CPU != 4000 || p.Price != (pcm.Price{Unit: "credit", PerTask: 500, PerCPUHour: 7}) {
		t.Errorf("pool %+v, offered %v", p, offered)
	}
	if _, kept := again.set.Pools["b"]; kept {
		t.Error("a rule that says nothing is kept")
	}
	if err := again.change(func(s *operatorSettings) error { s.Accounts["nobody"] = accountRule{Rule: ruleDeny}; return nil }); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("a rule for nobody: %v", err)
	}
	path := filepath.Join(n.cfg.Dir, operatorFile)
	for name, text := range map[string]string{
		"cut off":       `{"version": 1, "poo`,
		"newer":         `{"version": 2}`,
		"below zero":    `{"version": 1, "pools": {"a": {"cap": {"slots": -1}}}}`,
		"strange rule":  `{"version": 1, "accounts": {"acc-x": {"rule": "maybe"}}}`,
		"strange price": `{"version": 1, "pools": {"a": {"price": {"per_task": "-1"}}}}`,
		"too large":     `{"version": 1}` + strings.Repeat(" ", maxOperatorFile),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openOperator(n); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A back end that comes and goes is shown so; its pools can be set meanwhile.
func TestOperatorSees(t *testing.T) {
	o, err := openOperator(&Node{cfg: Config{Dir: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	o.saw("batch", []pcm.Pool{{ID: "short", Adapter: "batch"}, {ID: "long", Adapter: "batch"}})
	o.lost("batch", fmt.Errorf("no answer"))
	o.lost("other", fmt.Errorf("never seen"))
	if s := o.seen["long"]; !s.blind || s.why != "no answer" || len(o.dark) != 1 {
		t.Errorf("sighting %+v, dark %+v", s, o.dark)
	}
	if v := poolView(o.seen["short"], poolRule{Cordoned: &cordon{Reason: "move", Drain: &drain{}}}); v.State != api.PoolDraining || !strings.Contains(v.Reason, "no answer") {
		t.Errorf("view %+v", v)
	}
	o.saw("batch", []pcm.Pool{{ID: "short", Adapter: "batch"}})
	if _, still := o.seen["long"]; still || o.seen["short"].blind {
		t.Errorf("seen %+v", o.seen)
	}
	if err := o.noPool("shrot"); !strings.Contains(err.Error(), `did you mean "short"`) {
		t.Errorf("%v", err)
	}
}

func TestMayBuy(t *testing.T) {
	key := func() (pcm.AccountID, pcm.PeerID) {
		k := pcm.NewKey()
		return k.Account(), k.Peer()
	}
	own, self := key()
	friend, friendPeer := key()
	other, otherPeer := key()
	accounts := map[pcm.PeerID]pcm.AccountID{self: own, friendPeer: friend, otherPeer: other}
	for name, c := range map[string]struct {
		rules  map[string]string
		buyer  pcm.AccountID
		driver pcm.PeerID
		may    bool
	}{
		"no rules":              {nil, other, otherPeer, true},
		"denied account":        {map[string]string{string(other): ruleDeny}, other, otherPeer, false},
		"denied peer":           {map[string]string{string(otherPeer): ruleDeny}, other, otherPeer, false},
		"somebody else denied":  {map[string]string{string(other): ruleDeny}, friend, friendPeer, true},
		"allowed account":       {map[string]string{string(friend): ruleAllow}, friend, friendPeer, true},
		"allowed peer":          {map[string]string{string(friendPeer): ruleAllow}, friend, friendPeer, true},
		"another's, by that":    {map[string]string{string(friendPeer): ruleAllow}, other, friendPeer, false},
		"not allowed":           {map[string]string{string(friend): ruleAllow}, other, otherPeer, false},
		"the own account":       {map[string]string{string(friend): ruleAllow}, own, self, true},
		"own, by another":       {map[string]string{string(friend): ruleAllow}, own, otherPeer, true},
		"own, by a denied peer": {map[string]string{string(otherPeer): ruleDeny}, own, otherPeer, false},
		"deny wins":             {map[string]string{string(friend): ruleAllow, string(friendPeer): ruleDeny}, friend, friendPeer, false},
	} {
		o := &operator{n: &Node{account: own, self: self}, set: operatorSettings{Accounts: map[string]accountRule{}}}
		for who, rule := range c.rules {
			o.set.Accounts[who] = accountRule{Rule: rule}
		}
		err := o.mayBuy(pcm.Terms{Buyer: c.buyer, Driver: c.driver}, accounts[c.driver])
		if (err == nil) != c.may || err != nil && !strings.HasPrefix(err.Error(), deniedMark) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var d denials
	now := time.Now()
	d.learn(pcm.Terms{Seller: self, Buyer: other}, deniedMark+"no", now)
	d.learn(pcm.Terms{Seller: self, Buyer: friend}, "no room", now)
	if _, known := d.of(self, other, now.Add(deniedFor-time.Second)); !known {
		t.Error("a denial is forgotten too soon")
	}
	if _, known := d.of(self, other, now.Add(deniedFor+time.Second)); known {
		t.Error("a denial is never forgotten")
	}
	if _, known := d.of(self, friend, now); known {
		t.Error("what is no denial is taken for one")
	}
}

// The audit log is bounded, read newest first, and goes on after a line that was cut off.
func TestAuditLog(t *testing.T) {
	dir := t.TempDir()
	a, err := openAuditLog(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a.most = 2000
	all := func(api.AuditEntry) bool { return true }
	for i := range 200 {
		a.write(api.AuditEntry{Event: "ended", Attempt: i + 1}, i%50 == 0)
	}
	list, err := a.read(time.Time{}, all)
	if err != nil || len(list) == 0 || list[0].Attempt != 200 || list[len(list)-1].Attempt != 200-len(list)+1 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != auditFiles {
		t.Errorf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Size() > a.most+maxAuditLine || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %+v, %v", f.Name(), info, err)
		}
	}
	since := time.Now()
	a.write(api.AuditEntry{Event: "kill"}, true)
	if list, err := a.read(since, all); err != nil || len(list) != 1 || list[0].Event != "kill" {
		t.Errorf("since: %+v, %v", list, err)
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, auditFile), os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(`{"id":"9","ev`)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if a, err = openAuditLog(dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	a.write(api.AuditEntry{Event: "deny"}, true)
	if list, err := a.read(since, all); err != nil || len(list) != 2 || list[0].Event != "deny" {
		t.Errorf("after a cut line: %+v, %v", list, err)
	}
	_, err = a.f.WriteString(`{"id":"9","ev`) // as on a disk that is full
	if err == nil {
		err = a.f.Close()
	}
	if err == nil {
		a.f, err = os.Open(a.path(0))
	}
	if err != nil {
		t.Fatal(err)
	}
	a.write(api.AuditEntry{Event: "lost"}, true)
	a.write(api.AuditEntry{Event: "allow"}, true)
	if list, err := a.read(since, all); err != nil || len(list) != 3 || list[0].Event != "allow" {
		t.Errorf("after a disk was full: %+v, %v", list, err)
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
}

// hungEnd is a back end that answers when its caller has given up.
type hungEnd struct{ adapters.Adapter }

func (hungEnd) Name() string { return "hung" }

func (hungEnd) Pools(ctx context.Context) ([]pcm.Pool, error) {
	<-ctx.Done()
	return nil, pcm.Errorf(pcm.Unavailable, "no answer in time")
}

type emptyPool struct{ adapters.Adapter }

func (emptyPool) Name() string { return "half" }

func (emptyPool) Pools(context.Context) ([]pcm.Pool, error) {
	return []pcm.Pool{{ID: "a", Adapter: "half", Slots: 1, Capacity: pcm.Resources{CPU: 1000}}, {ID: "b", Adapter: "half"}}, nil
}

func TestCheckBackEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the hung one is at its deadline at once
	list := CheckBackEnds(ctx, []adapters.Adapter{hungEnd{}, emptyPool{}})
	if list[0].Status != api.CheckFail || list[0].Hint == "" {
		t.Errorf("hung: %+v", list[0])
	}
	if list[1].Status != api.CheckWarn || !strings.Contains(list[1].Hint, "pool b has no room") {
		t.Errorf("one pool without room: %+v", list[1])
	}
	if c := api.NewCheckup("x", list); c.OK {
		t.Error("a failure is good")
	}
}
