package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
)

const example = "../../configs/pcm.example.yaml"

// The commented example has every key, and its values are the defaults.
func TestExampleIsTheDefaults(t *testing.T) {
	raw, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	var got Config
	if _, err := pcm.DecodeYAML(raw, example, &got); err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig("")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the example says\n%+v\nthe defaults are\n%+v", got, want)
	}
	// Keys without a fixed default stand there as comments.
	for _, key := range configKeys(reflect.TypeFor[Config](), "") {
		last := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(`(?m)^ *(# )?` + last + `:`).Match(raw) {
			t.Errorf("the example lacks %s", key)
		}
	}
	// The comments' values are good ones, too.
	full := regexp.MustCompile(`(?m)^# ((data|name|account_key): .*)$`).ReplaceAll(raw, []byte("$1"))
	var all Config
	if _, err := pcm.DecodeYAML(full, example, &all); err != nil || all.Name != "my-site" || all.Data == "" || all.AccountKey == "" {
		t.Errorf("%+v %v", all, err)
	}
	if err := all.Validate(); err != nil {
		t.Error(err)
	}
}

func configKeys(typ reflect.Type, prefix string) (keys []string) {
	for f := range typ.Fields() {
		key := prefix + f.Tag.Get("json")
		keys = append(keys, key)
		if f.Type.Kind() == reflect.Struct {
			keys = append(keys, configKeys(f.Type, key+".")...)
		}
	}
	return keys
}

// Flags win over the environment, which wins over the file, which wins over the defaults.
func TestConfigPrecedence(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte("name: from-file\napi: 127.0.0.1:1\ncredit_limit: 7\nadapters: {wasm: {slots: 3, price: {per_task: 0.000001}}}\nlabels: {zone: a}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"PCM_NAME": "from-env", "PCM_API": "127.0.0.1:2", "PCM_LISTEN": "/ip4/127.0.0.1/tcp/1, /ip4/127.0.0.1/tcp/2",
		"PCM_ADAPTERS_PROCESS_ENABLED": "false", "PCM_ADAPTERS_WASM_SLOTS": "4", "PCM_LABELS": "region=eu,tier=edge", "PCM_MDNS": "",
	}
	c, err := loadConfig("", dir, func(k string) string { return env[k] }, func(c *Config) { c.Name = "from-flag" })
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ what, got, want string }{
		{"flag over all", c.Name, "from-flag"},
		{"environment over file", c.API, "127.0.0.1:2"},
		{"file over default", string(c.CreditLimit), "7"},
		{"small amounts keep their digits", string(c.Adapters.Wasm.Price.PerTask), "0.000001"},
		{"beside it the default stays", c.Adapters.Wasm.Price.Unit, "credit"},
		{"list of the environment", strings.Join(c.Listen, " "), "/ip4/127.0.0.1/tcp/1 /ip4/127.0.0.1/tcp/2"},
		{"labels of the environment", c.Labels.String(), "region=eu,tier=edge"},
		{"default", c.Log.Format, "auto"},
		{"account key", c.AccountKey, filepath.Join(dir, "account.key")},
		{"data", c.Data, dir},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.what, tt.got, tt.want)
		}
	}
	if c.Adapters.Process.Enabled || c.Adapters.Wasm.Slots != 4 {
		t.Errorf("%+v", c.Adapters)
	}
}

// Faults name file, line and key, or the variable, and say what would be right.
func TestConfigFaults(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		env        map[string]string
		has        []string
	}{
		{"unknown key", "nmae: x\n", nil, []string{"config.yaml:1:1", "nmae", `name`}},
		{"unknown nested key", "adapters:\n  process:\n    slot: 3\n", nil, []string{"config.yaml:3:5", "slot", "slots"}},
		{"key at the wrong depth", "sandbox: auto\n", nil, []string{"config.yaml:1:1", "sandbox"}},
		{"wrong type", "mdns: maybe\n", nil, []string{"config.yaml:1:7", "mdns"}},
		{"list instead of text", "name: [a]\n", nil, []string{"config.yaml:1", "name"}},
		{"key twice", "name: a\nname: b\n", nil, []string{"config.yaml:2", "name"}},
		{"no YAML", "name: [\n", nil, []string{"config.yaml:1"}},
		{"wrong value", "log:\n  level: loud\n", nil, []string{"config.yaml:2:10", "log.level", "loud", "debug, info, warn, error"}},
		{"wrong amount", "adapters: {wasm: {price: {per_task: 1e9999}}}\n", nil, []string{"config.yaml:1", "adapters.wasm.price.per_task", "1e9999"}},
		{"below zero", "credit_limit: -1\n", nil, []string{"credit_limit", "below zero"}},
		{"price beyond all", "adapters: {process: {price: {per_cpu_hour: 2000000}}}\n", nil, []string{"adapters.process.price", "out of range"}},
		{"wrong size", "store: {quota: many}\n", nil, []string{"config.yaml:1:16", "store.quota", "many"}},
		{"wrong sandbox", "adapters: {process: {sandbox: chroot}}\n", nil, []string{"chroot", "auto, bubblewrap, landlock, none"}},
		{"negative slots", "adapters: {process: {slots: -1}}\n", nil, []string{"adapters.process.slots", "-1"}},
		{"wrong capacity", "adapters: {process: {capacity: {cpu: lots}}}\n", nil, []string{"adapters.process.capacity", "lots"}},
		{"capacity without its unit", "adapters: {wasm: {capacity: {memory: 512}}}\n", nil, []string{"config.yaml:1", "adapters.wasm.capacity.memory", "did you mean 512MiB?"}},
		{"wrong multiaddr", "listen: [0.0.0.0:7419]\n", nil, []string{"listen", "0.0.0.0:7419", "/ip4/0.0.0.0/tcp/7419"}},
		{"API without port", "api: localhost\n", nil, []string{"api", "127.0.0.1:7420"}},
		{"wrong name", "name: My Site\n", nil, []string{"name", "My Site"}},
		{"not a token", "join: hello\n", nil, []string{"join", "not a token"}},
		{"variable of wrong type", "", map[string]string{"PCM_MDNS": "maybe"}, []string{"PCM_MDNS", "maybe"}},
		{"variable of wrong number", "", map[string]string{"PCM_ADAPTERS_WASM_SLOTS": "x"}, []string{"PCM_ADAPTERS_WASM_SLOTS"}},
		{"variable of wrong value", "", map[string]string{"PCM_CELL_PROFILE": "moon"}, []string{"PCM_CELL_PROFILE", "moon", "lan, wan"}},
		{"variable of wrong labels", "", map[string]string{"PCM_LABELS": "eu"}, []string{"PCM_LABELS", "KEY=VALUE"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.file != "" {
				if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := loadConfig("", dir, func(k string) string { return tt.env[k] }, func(*Config) {})
			if pcm.ErrorCode(err) != pcm.Invalid {
				t.Fatalf("error %v", err)
			}
			for _, want := range tt.has {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q: %v", want, err)
				}
			}
		})
	}
}

func TestConfigFileMissing(t *testing.T) {
	dir := t.TempDir()
	none := func(string) string { return "" }
	if _, err := loadConfig("", dir, none, func(*Config) {}); err != nil {
		t.Errorf("a data folder needs no file: %v", err)
	}
	if _, err := loadConfig(filepath.Join(dir, "other.yaml"), dir, none, func(*Config) {}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was named must be there: %v", err)
	}
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, make([]byte, maxConfig+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(big, dir, none, func(*Config) {}); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte("# nothing yet\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig("", dir, none, func(*Config) {}); err != nil {
		t.Errorf("a file of comments is good: %v", err)
	}
}

func TestNameOf(t *testing.T) {
	for host, want := range map[string]string{"Node_7.example.org": "node-7", "": "peer", "ünder": "nder", strings.Repeat("a", 80): strings.Repeat("a", 63), "-x-": "x"} {
		if got := nameOf(host); got != want || !pcm.ValidName(got) {
			t.Errorf("nameOf(%q) = %q, want %q", host, got, want)
		}
	}
}

// TestFacts: what the configuration says of pools is read, and faults name their key.
func TestFacts(t *testing.T) {
	load := func(text string) (Config, error) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return loadConfig("", dir, func(string) string { return "" }, func(*Config) {})
	}
	c, err := load("facts: {gpu: {class: gpu.a100.80g, accelerator: a100.80g, software: [cuda 12.4, python], bandwidth: 100 Gbit/s, fabric: infiniband, disk: 2TiB}}\n")
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.poolFacts()
	f := all["gpu"]
	if err != nil || f.Class != "gpu.a100.80g" || f.Accelerator == nil || f.Accelerator.Memory != 80<<30 || f.Disk != 2<<40 ||
		!reflect.DeepEqual(f.Software, pcm.Software{"cuda": "12.4", "python": ""}) || *f.Network != (pcm.Network{Bandwidth: 100_000, Fabric: "infiniband"}) {
		t.Errorf("the facts are %+v, %v", f, err)
	}
	for text, want := range map[string]string{
		"facts: {gpu: {accelerator: a100.80gb}}":  `facts.gpu.accelerator: no accelerator is called "a100.80gb"; did you mean "a100.80g"?`,
		"facts: {gpu: {software: [cuda twelve]}}": "facts.gpu.software",
		"facts: {gpu: {bandwidth: fast}}":         "facts.gpu.bandwidth",
		"facts: {gpu: {fabric: Infini Band}}":     "facts.gpu.fabric",
		"facts: {gpu: {disk: much}}":              "facts.gpu.disk",
		"facts: {gpu: {class: My Class}}":         "facts.gpu.class",
		"facts: {My Pool: {disk: 1GiB}}":          "not the name of a pool",
		"facts: {gpu: {acelerator: a100}}":        "did you mean accelerator?",
		"classes: [nowhere.yaml]":                 "nowhere.yaml",
	} {
		if _, err := load(text + "\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
