package adaptertest

import (
	"encoding/json"
	"os"
	"testing"
)

// envMatrix names the file to which the suite adds what it found, a line of
// JSON for each subject and capability.
const envMatrix = "PCM_TEST_MATRIX"

// Finding is what the suite found of one capability of a subject.
type Finding struct {
	Subject    string `json:"subject"`
	Capability string `json:"capability"`
	Result     string `json:"result"` // pass, unsupported or fail
	Reason     string `json:"reason,omitempty"`
}

// note adds the finding of a test that ends.
func note(t *testing.T, s Subject, c Capability) {
	name := os.Getenv(envMatrix)
	if name == "" {
		return
	}
	f := Finding{Subject: s.Name, Capability: c.Name, Result: "pass", Reason: s.Unsupported[c.Name]}
	switch {
	case t.Failed():
		f.Result = "fail"
	case t.Skipped():
		f.Result = "unsupported"
	}
	line, err := json.Marshal(f)
	if err == nil {
		var file *os.File
		if file, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err == nil {
			_, err = file.Write(append(line, '\n'))
			file.Close()
		}
	}
	if err != nil {
		t.Errorf("can't add to the matrix: %v", err)
	}
}
