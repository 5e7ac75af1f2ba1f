package pcm_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var documents = []string{"README.md", "ARCHITECTURE.md", "DECISIONS.md", "CONTRIBUTING.md"}

var (
	inCode = regexp.MustCompile("`([A-Za-z0-9_./-]+\\.(?:go|md|yaml|json|service))`")
	linked = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
)

// Files that the documents name are there.
func TestDocsNameRealFiles(t *testing.T) {
	for _, doc := range documents {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		names := 0
		for _, re := range []*regexp.Regexp{inCode, linked} {
			for _, m := range re.FindAllStringSubmatch(string(text), -1) {
				names++
				if _, err := os.Stat(filepath.FromSlash(m[1])); err != nil {
					t.Errorf("%s names %s: %v", doc, m[1], err)
				}
			}
		}
		if names == 0 {
			t.Errorf("no file is found in %s: this test sees nothing", doc)
		}
	}
}

// The job in the README is the example that other tests decode.
func TestDocsShowTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("configs/job.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```yaml\n"+string(example)+"```\n") {
		t.Error("README.md does not show configs/job.example.yaml as it is: copy it anew")
	}
}
