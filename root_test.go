package pcm_test

import (
	"bytes"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]pcm.Bytes{
		"0": 0, "1": 1, "64MiB": 64 << 20, "8 GiB": 8 << 30, " 1.5GB ": 1_500_000_000, "512Mi": 512 << 20, "10B": 10, "1kB": 1000, "4PiB": 4 << 50,
	} {
		if got, err := pcm.ParseBytes(in); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "MiB", "-1", "1 GX", "Inf", "NaN", "5PiB", "1e300", "1 2", "64 mib"} {
		if got, err := pcm.ParseBytes(in); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("ParseBytes(%q) = %d, %v; want an error", in, got, err)
		}
	}
}

// A shape asks for no memory or for enough to start a program in.
func TestLeastMemory(t *testing.T) {
	for in, want := range map[string]string{
		"512": "memory 512B is below 1MiB: did you mean 512MiB?", "1": "memory 1B is below 1MiB: did you mean 1MiB?",
		"64KiB": "memory 64KiB is below 1MiB: did you mean 64MiB?", "1MB": "memory 976.6KiB is below 1MiB, the least that can be asked for",
		"1MiB": "", "0": "", "": "", "2GiB": "",
	} {
		_, err := pcm.Step{Resources: pcm.Ask{Memory: in}}.Shape()
		if want == "" && err == nil {
			continue
		}
		if pcm.ErrorCode(err) != pcm.Invalid || err.Error() != want {
			t.Errorf("memory %q: %v, want %q", in, err, want)
		}
		spec := pcm.Spec{Steps: []pcm.Step{{Command: []string{"a"}, Class: "cpu.small", Resources: pcm.Ask{Memory: in}}}}
		if faults := spec.Normalize(); len(faults) != 1 || faults[0].Error() != "steps[0].resources.memory: "+want {
			t.Errorf("memory %q in a spec: %v", in, faults)
		}
	}
}

func TestParseMilliCPU(t *testing.T) {
	for in, want := range map[string]pcm.MilliCPU{"2": 2000, "0.5": 500, "500m": 500, "0.0001": 1, "0": 0, "1000000": 1e9, "131072.583": 131072583} {
		if got, err := pcm.ParseMilliCPU(in); err != nil || got != want {
			t.Errorf("ParseMilliCPU(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "-1", "-1m", "two", "NaN", "Inf", "1000001", "1.5m"} {
		if got, err := pcm.ParseMilliCPU(in); err == nil {
			t.Errorf("ParseMilliCPU(%q) = %d; want an error", in, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		c := pcm.MilliCPU(rapid.Int64Range(0, 1e9).Draw(t, "cpu"))
		if got, err := pcm.ParseMilliCPU(c.String()); err != nil || got != c {
			t.Fatalf("%d prints as %s, which reads as %d, %v", c, c, got, err)
		}
	})
}

func TestMicro(t *testing.T) {
	for in, want := range map[string]pcm.Micro{"12": 12e6, "0.25": 250_000, "-1.5": -1_500_000, "0.000001": 1, "9000000000000": 9e18} {
		if got, err := pcm.ParseMicro(in); err != nil || got != want {
			t.Errorf("ParseMicro(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", ".", "1.", ".5", "1.0000001", "--1", "+1", "1e3", "0x10", "1 2", "9000000000001", "1.-5", "1.+5", "1_000"} {
		if got, err := pcm.ParseMicro(in); err == nil {
			t.Errorf("ParseMicro(%q) = %d; want an error", in, got)
		}
	}
	if got := pcm.Micro(math.MinInt64).String(); got != "-9223372036854.775808" {
		t.Errorf("the least amount prints as %s", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		m := pcm.Micro(rapid.Int64Range(-9e18, 9e18).Draw(t, "amount"))
		if got, err := pcm.ParseMicro(m.String()); err != nil || got != m {
			t.Fatalf("%d prints as %s, which reads as %d, %v", int64(m), m, int64(got), err)
		}
	})
}

// Cost is the formula of its comment, in exact arithmetic.
func TestCostAgainstBigInt(t *testing.T) {
	amount := rapid.OneOf(rapid.Int64Range(0, 1e7), rapid.Int64Range(0, int64(pcm.MaxPrice)))
	rapid.Check(t, func(t *rapid.T) {
		p := pcm.Price{Unit: "credit", PerTask: pcm.Micro(amount.Draw(t, "task")),
			PerCPUHour: pcm.Micro(amount.Draw(t, "cpu-hour")), PerGiBHour: pcm.Micro(amount.Draw(t, "gib-hour")),
			PerGPUHour: pcm.Micro(amount.Draw(t, "gpu-hour"))}
		r := pcm.Resources{CPU: pcm.MilliCPU(rapid.Int64Range(0, 1e9).Draw(t, "cpu")), Memory: pcm.Bytes(rapid.Int64Range(0, 4<<50).Draw(t, "memory")),
			GPU: rapid.Int64Range(0, 1e6).Draw(t, "gpu")}
		d := time.Duration(rapid.OneOf(rapid.Int64Range(-5, 1e12), rapid.Int64Range(0, math.MaxInt64)).Draw(t, "ran"))
		ms := big.NewInt(max(int64(d/time.Millisecond), 0))
		part := func(price pcm.Micro, quantity, per int64) *big.Int {
			n := new(big.Int).Mul(big.NewInt(int64(price)), ms)
			n.Mul(n, big.NewInt(quantity))
			n.Add(n, big.NewInt(per-1))
			return n.Quo(n, big.NewInt(per))
		}
		want := part(p.PerCPUHour, int64(r.CPU), 1000*3600*1000)
		want.Add(want, part(p.PerGiBHour, int64(r.Memory)>>20, 1024*3600*1000))
		want.Add(want, part(p.PerGPUHour, r.GPU, 3600*1000))
		want.Add(want, big.NewInt(int64(p.PerTask)))
		if !want.IsInt64() {
			want.SetInt64(math.MaxInt64)
		}
		if got := p.Cost(r, d); int64(got) != want.Int64() {
			t.Fatalf("cost is %d, want %d", int64(got), want)
		}
	})
}

func TestMulMicro(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, n := rapid.Int64Range(0, math.MaxInt64).Draw(t, "amount"), rapid.IntRange(-3, 1e6).Draw(t, "n")
		want := new(big.Int).Mul(big.NewInt(a), big.NewInt(int64(max(n, 0))))
		if !want.IsInt64() {
			want.SetInt64(math.MaxInt64)
		}
		if got := pcm.MulMicro(pcm.Micro(a), n); int64(got) != want.Int64() {
			t.Fatalf("got %d, want %d", int64(got), want)
		}
	})
}

func TestFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.Int64Range(0, 50)
		shape := func(name string) pcm.Resources {
			return pcm.Resources{CPU: pcm.MilliCPU(small.Draw(t, name)), Memory: pcm.Bytes(small.Draw(t, name)), GPU: small.Draw(t, name)}
		}
		have, each, limit := shape("have"), shape("each"), rapid.IntRange(0, 60).Draw(t, "limit")
		n := have.Fits(each, limit)
		if n > limit || !each.Times(n).Within(have) || n < limit && each.Times(n+1).Within(have) {
			t.Fatalf("%d of %+v fit in %+v, at most %d", n, each, have, limit)
		}
	})
}

func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.MapOfN(rapid.IntRange(0, 99), rapid.Just(true), 1, 60).Draw(t, "set")
		var sorted []int
		for i := range 100 {
			if set[i] {
				sorted = append(sorted, i)
			}
		}
		s := pcm.SpansOf(sorted)
		if !s.Valid(100) || s.Len() != len(sorted) || !slices.Equal(slices.Collect(s.All), sorted) {
			t.Fatalf("%v is not the set %v", s, sorted)
		}
		for i := range 100 {
			if s.Has(i) != set[i] {
				t.Fatalf("%v: Has(%d) is %v", s, i, s.Has(i))
			}
		}
		if s.Valid(sorted[len(sorted)-1]) {
			t.Fatalf("%v is valid within %d", s, sorted[len(sorted)-1])
		}
	})
	for _, s := range []pcm.Spans{nil, {{1, 1}}, {{2, 1}}, {{-1, 1}}, {{1, 3}, {2, 4}}, {{3, 4}, {0, 1}}, {{0, 101}}} {
		if s.Valid(100) {
			t.Errorf("%v is valid", s)
		}
	}
}

// A batch's verdicts are those of one by one, whatever is in it: replicas that
// checked differently would have different states.
func TestVerifyBatch(t *testing.T) {
	keys := []pcm.Key{pcm.NewKey(), pcm.NewKey(), pcm.NewKey()}
	garbage := rapid.SliceOfN(rapid.Byte(), 0, 70)
	rapid.Check(t, func(t *rapid.T) {
		batch := make([]pcm.Signed, rapid.IntRange(0, 12).Draw(t, "n"))
		want := make([]bool, len(batch))
		sound := rapid.Bool().Draw(t, "sound") // no fault, or only such as leave a signature valid
		for i := range batch {
			s := keys[rapid.IntRange(0, 2).Draw(t, "key")].Seal(pcm.DomainCommand, i)
			switch fault := rapid.IntRange(0, 8).Draw(t, "fault"); {
			case sound && fault == 0, fault == 4:
				s.Signer = make([]byte, 32) // a point of small order
				s.Sig = make([]byte, 64)
			case sound && fault == 1:
				s.Signer = append([]byte{0xee}, bytes.Repeat([]byte{0xff}, 31)...) // 1, not canonical, of small order
				s.Sig = append(slices.Clone(s.Signer), make([]byte, 32)...)
			case sound:
			case fault == 0:
				s.Signer = garbage.Draw(t, "signer")
			case fault == 1:
				s.Sig = garbage.Draw(t, "sig")
			case fault == 2:
				s.Payload = append(s.Payload, 0)
			case fault == 3:
				s.Sig[rapid.IntRange(0, 63).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			case fault == 5: // s above the order of the group
				for at := 32; at < 64; at++ {
					s.Sig[at] = 0xff
				}
			}
			batch[i], want[i] = s, s.Verify(pcm.DomainCommand)
		}
		if got := pcm.VerifyBatch(pcm.DomainCommand, batch); !slices.Equal(got, want) {
			t.Fatalf("in a batch %v, one by one %v", got, want)
		}
		if sound && slices.Contains(want, false) {
			t.Fatal("a sound signature is not valid")
		}
	})
}

// One forged signature among many of the same signer is found, wherever it is,
// and also if two forgeries would cancel each other in an unweighted sum.
func TestVerifyBatchOfOneSigner(t *testing.T) {
	key := pcm.NewKey()
	batch := make([]pcm.Signed, 300)
	for i := range batch {
		batch[i] = key.Seal(pcm.DomainCommand, i)
	}
	if got := pcm.VerifyBatch(pcm.DomainCommand, batch); slices.Contains(got, false) {
		t.Fatal("valid signatures are refused")
	}
	for _, at := range []int{0, 150, 298} {
		forged := slices.Clone(batch)
		forged[at].Sig, forged[at+1].Sig = batch[at+1].Sig, batch[at].Sig
		for i, ok := range pcm.VerifyBatch(pcm.DomainCommand, forged) {
			if ok == (i == at || i == at+1) {
				t.Fatalf("signatures %d and %d were swapped, and that of %d is judged %v", at, at+1, i, ok)
			}
		}
	}
	if got := pcm.VerifyBatch(pcm.DomainOffer, batch); slices.Contains(got, true) {
		t.Fatal("a signature of another domain is accepted")
	}
}

// BenchmarkVerifyBatch checks commands of about 400 bytes, as many signers as they are named.
func BenchmarkVerifyBatch(b *testing.B) {
	for _, signers := range []int{1, 64, 512} {
		for _, n := range []int{16, 128, 512, 1024} {
			b.Run(fmt.Sprintf("signers=%d/batch=%d", signers, n), func(b *testing.B) {
				batch := make([]pcm.Signed, n)
				keys := make([]pcm.Key, min(n, signers))
				for i := range keys {
					keys[i] = pcm.NewKey()
				}
				for i := range batch {
					batch[i] = keys[i%len(keys)].Seal(pcm.DomainCommand, bytes.Repeat([]byte{byte(i)}, 300))
				}
				for b.Loop() {
					if slices.Contains(pcm.VerifyBatch(pcm.DomainCommand, batch), false) {
						b.Fatal("a valid signature is refused")
					}
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n), "µs/signature")
			})
		}
	}
}

func TestDomainsAreApart(t *testing.T) {
	s := pcm.NewKey().Seal(pcm.DomainOffer, "x")
	if !s.Verify(pcm.DomainOffer) || s.Verify(pcm.DomainCommand) {
		t.Error("a signature for one purpose passes for another")
	}
}

func TestKeyForms(t *testing.T) {
	k := pcm.NewKey()
	again, err := pcm.KeyFromSeed(k.Seed())
	if err != nil || again.Account() != k.Account() || again.Peer() != k.Peer() {
		t.Errorf("the key restored from its seed differs: %v", err)
	}
	if !slices.Equal(k.Account().Public(), k.Public()) || !slices.Equal(k.Peer().Public(), k.Public()) {
		t.Error("the public key isn't that of the account or peer ID")
	}
	if _, err := pcm.KeyFromSeed(make([]byte, 31)); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("a short seed: %v", err)
	}
	for _, id := range []string{"", "acc-", "acc-" + strings.Repeat("1", 52), strings.Repeat("a", 56)} {
		if pcm.AccountID(id).Public() != nil || pcm.PeerID(id).Public() != nil {
			t.Errorf("%q has a public key", id)
		}
	}
}

func TestPassportChain(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	root, account, founder, guest := pcm.NewKey(), pcm.NewKey(), pcm.NewKey(), pcm.NewKey()
	mesh := pcm.NewMeshID(root.Public())
	issue := func(by pcm.Key, issuer *pcm.Signed, peer pcm.Key, change func(*pcm.Passport)) pcm.Signed {
		p := pcm.Passport{Mesh: mesh, Peer: peer.Peer(), Account: account.Account(), Name: "site", IssuedAt: now.UnixMilli(),
			NotAfter: now.Add(time.Hour).UnixMilli(), AccountBy: pcm.SignJoin(account, mesh, peer.Peer()), Issuer: issuer}
		if change != nil {
			change(&p)
		}
		return by.Seal(pcm.DomainPassport, p)
	}
	issuing := func(p *pcm.Passport) { p.Roles = []pcm.Role{pcm.RoleIssuer} }
	first := issue(root, nil, founder, issuing)
	plain := issue(root, nil, founder, nil)
	good := issue(founder, &first, guest, nil)
	if p, err := pcm.OpenPassport(good, root.Public(), now); err != nil || p.Peer != guest.Peer() {
		t.Fatalf("a good passport: %v", err)
	}
	tampered := good
	tampered.Payload = append(slices.Clone(good.Payload[:len(good.Payload)-1]), good.Payload[len(good.Payload)-1]^1)
	chain := first
	keys := []pcm.Key{founder}
	for range 6 {
		k := pcm.NewKey()
		up := chain
		chain = issue(keys[len(keys)-1], &up, k, issuing)
		keys = append(keys, k)
	}
	for name, tt := range map[string]struct {
		s    pcm.Signed
		now  time.Time
		want string
	}{
		"tampered":         {tampered, now, "signature"},
		"not by the root":  {issue(guest, nil, guest, nil), now, "not signed by the root"},
		"issuer may not":   {issue(founder, &plain, guest, nil), now, "may not issue"},
		"by somebody else": {issue(guest, &first, guest, nil), now, "may not issue"},
		"expired":          {good, now.Add(time.Hour + pcm.Skew + time.Second), "expired"},
		"from the future":  {good, now.Add(-pcm.Skew - time.Second), "future"},
		"another mesh":     {issue(root, nil, guest, func(p *pcm.Passport) { p.Mesh = "mesh-aaaaaaaaaaaaaaaa" }), now, "passport is for"},
		"account unasked":  {issue(root, nil, guest, func(p *pcm.Passport) { p.Account = root.Account() }), now, "not signed by account"},
		"terminal escapes": {issue(root, nil, guest, func(p *pcm.Passport) { p.Name = "a\x1b[2J" }), now, "bounds"},
		"escapes in label": {issue(root, nil, guest, func(p *pcm.Passport) { p.Labels = pcm.Labels{"a": "\r"} }), now, "can't be shown"},
		"endless chain":    {chain, now, "issuers in its chain"},
	} {
		if _, err := pcm.OpenPassport(tt.s, root.Public(), tt.now); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, tt.want)
		}
	}
}

func TestToken(t *testing.T) {
	root, issuer := pcm.NewKey(), pcm.NewKey()
	secret := []byte("a secret of this invite")
	inv := pcm.Invite{Mesh: pcm.NewMeshID(root.Public()), Root: root.Public(), Cell: pcm.NewCellID(), Issuer: issuer.Peer(),
		Addrs: []string{"/ip4/127.0.0.1/tcp/1"}, Hash: pcm.DigestOf(secret), NotAfter: 1}
	line := pcm.Token{Invite: issuer.Seal(pcm.DomainInvite, inv), Secret: secret}.String()
	if _, got, err := pcm.ParseToken(" " + line + "\n"); err != nil || got.Cell != inv.Cell {
		t.Fatalf("a good token: %v", err)
	}
	for name, bad := range map[string]string{
		"empty": "", "not a token": "hello", "cut short": line[:len(line)-5], "one letter": line[:40] + "A" + line[41:],
		"other secret": pcm.Token{Invite: issuer.Seal(pcm.DomainInvite, inv), Secret: []byte("another")}.String(),
		"forged":       pcm.Token{Invite: root.Seal(pcm.DomainInvite, inv), Secret: secret}.String(),
	} {
		if _, _, err := pcm.ParseToken(bad); pcm.ErrorCode(err) == "" {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOpenOffer(t *testing.T) {
	now, key := time.UnixMilli(1_800_000_000_000), pcm.NewKey()
	pool := pcm.Pool{ID: "local", Adapter: "process", Capacity: pcm.Resources{CPU: 1000}, Slots: 1, Price: pcm.Price{Unit: "credit"}}
	offer := func(change func(*pcm.Offer)) pcm.Signed {
		o := pcm.Offer{Mesh: "mesh-aaaaaaaaaaaaaaaa", Cell: "cell-aaaaaaaaaaaaaaaa", Peer: key.Peer(), Account: key.Account(), Name: "site", Number: 1,
			IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli(), Pools: []pcm.Pool{pool}}
		change(&o)
		return key.Seal(pcm.DomainOffer, o)
	}
	if _, err := pcm.OpenOffer(offer(func(*pcm.Offer) {}), now); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]pcm.Signed{
		"somebody else's": offer(func(o *pcm.Offer) { o.Peer = pcm.NewKey().Peer() }),
		"expired":         offer(func(o *pcm.Offer) { o.NotAfter = now.Add(-pcm.Skew - time.Second).UnixMilli() }),
		"future":          offer(func(o *pcm.Offer) { o.IssuedAt = now.Add(pcm.Skew + time.Second).UnixMilli() }),
		"same pool twice": offer(func(o *pcm.Offer) { o.Pools = append(o.Pools, pool) }),
		"escapes":         offer(func(o *pcm.Offer) { o.Name = "\x1b[31m" }),
		"negative price":  offer(func(o *pcm.Offer) { o.Pools[0].Price.PerTask = -1 }),
		"too large":       offer(func(o *pcm.Offer) { o.Labels = pcm.Labels{"a": strings.Repeat("x", pcm.MaxOffer)} }),
	} {
		if _, err := pcm.OpenOffer(s, now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What decodes encodes to something that decodes to the same: other peers' bytes
// never panic and never grow.
func FuzzUnmarshal(f *testing.F) {
	k := pcm.NewKey()
	for _, v := range []any{pcm.Command{Ops: []pcm.Op{{Renew: &pcm.Renew{Incarnation: 1}}}}, k.Seal(pcm.DomainOffer, pcm.Offer{}), pcm.Entry{}, pcm.Spec{}, pcm.Passport{}} {
		f.Add(pcm.MustMarshal(v))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, v := range []any{new(pcm.Command), new(pcm.Signed), new(pcm.Entry), new(pcm.Spec), new(pcm.Passport), new(pcm.Offer), new(pcm.Invite), new(pcm.Token), new(pcm.Record)} {
			if pcm.Unmarshal(data, v) != nil {
				continue
			}
			once := pcm.MustMarshal(v)
			if err := pcm.Unmarshal(once, v); err != nil {
				t.Fatalf("%T decoded, but what it encodes to does not: %v", v, err)
			}
			if again := pcm.MustMarshal(v); string(again) != string(once) {
				t.Fatalf("%T has two encodings", v)
			}
		}
		pcm.OpenOffer(pcm.Signed{Payload: data}, time.Now())
		pcm.ParseToken(string(data))
	})
}
