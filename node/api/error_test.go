package api

import (
	"testing"

	"github.com/jointcloud/pcm"
)

// What another peer says of an error doesn't move the cursor of whoever reads it.
func TestForeignErrorIsPlain(t *testing.T) {
	err := frameError(pcm.MustMarshal(pcm.Error{Code: pcm.Refused, Message: "no\x1b]0;x\a\u202e\nreally not"}))
	if pcm.ErrorCode(err) != pcm.Refused || err.Error() != "no?]0;x??\nreally not" {
		t.Errorf("%q", err.Error())
	}
	if err := frameError([]byte("junk")); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("junk: %v", err)
	}
}
