package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/api/apitest"
)

var update = flag.Bool("update", false, "write configs/openapi.json anew")

const openAPIFile = "../../configs/openapi.json"

// The published OpenAPI document is that of the server.
func TestOpenAPIIsCurrent(t *testing.T) {
	raw, err := api.NewServer(apitest.New(), api.Config{Version: "1"}).OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	indented.WriteByte('\n')
	if *update {
		if err := os.WriteFile(openAPIFile, indented.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(openAPIFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, indented.Bytes()) {
		t.Errorf("%s is out of date: run 'go test ./node/api -run OpenAPI -update' and read the difference", openAPIFile)
	}
}
