package plugin

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// What is made of the contract belongs to the contract as it stands: making it
// anew needs more than every machine has.
func TestStubsAreCurrent(t *testing.T) {
	proto, err := os.ReadFile("adapter.proto")
	if err != nil {
		t.Fatal(err)
	}
	of, err := os.ReadFile("adapter.proto.sha256")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(proto)
	if hex.EncodeToString(sum[:]) != strings.TrimSpace(string(of)) {
		t.Error("adapter.proto was changed and its stubs were not: run adapters/plugin/generate.sh")
	}
}
