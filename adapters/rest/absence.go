package rest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/client"
)

const (
	fewest       = 2               // tries in a row that the back end must not answer
	absenceTold  = time.Second     // how often it is written down that it still doesn't
	absenceValid = 2 * time.Minute // after the last try; whether it is back then is to be tried
)

// absence is that a back end does not answer. The supervisor, which calls it all
// the time, writes it down for the daemon, which looks at its pools now and then.
type absence struct {
	Since time.Time `json:"since"`
	Last  time.Time `json:"last"` // try
	Why   string    `json:"why"`

	Unread bool `json:"unread,omitempty"` // jobs can't be read, whatever else it answers
}

func (a *absence) String() string {
	return "it does not answer since " + a.Since.UTC().Format(time.RFC3339) + ": " + a.Why
}

// heard counts calls in a row that get no answer at all.
func (b *backend) heard(ctx context.Context, req *client.Request, resp *client.Response, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case resp != nil && resp.Status < 500:
		b.unheard, b.answers = 0, true
		if b.absent != nil {
			b.absent = nil
			b.told()
		}
	case resp != nil:
		b.answers = true // that something is wrong
	case ctx.Err() != nil || pcm.ErrorCode(err) != pcm.Unavailable:
		// It was not asked.
	case req.Idempotent && b.d.Limits.Tries != 1:
		b.struck(2, false, err) // the client has tried it again already
	default:
		b.struck(1, false, err)
	}
}

// unread is that the jobs can't be read, after all tries.
func (b *backend) unread(err error) {
	if pcm.ErrorCode(err) == pcm.Unavailable {
		b.mu.Lock()
		b.struck(1, true, err)
		b.mu.Unlock()
	}
}

// struck counts tries that failed. b.mu is held.
func (b *backend) struck(tries int, unread bool, err error) {
	now := time.Now()
	b.unheard += tries
	if !unread {
		b.answers = false
	}
	if b.unheard < fewest || b.absent != nil && now.Sub(b.absent.Last) < absenceTold {
		return
	}
	since := now
	if b.absent != nil {
		since = b.absent.Since
	}
	b.absent = &absence{Since: since, Last: now, Why: b.clean(err.Error(), maxReason), Unread: unread && b.answers}
	b.told()
}

// told writes down what is known. b.mu is held.
func (b *backend) told() {
	if b.tell != nil {
		b.tell(b.absent)
	}
}

func (n notebook) absenceFile() string { return filepath.Join(string(n), "absence") }

// absent notes that the back end does not answer; nil: that it does.
func (n notebook) absent(a *absence) error {
	if a == nil {
		if err := os.Remove(n.absenceFile()); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	}
	raw, err := json.Marshal(a)
	if err != nil {
		return err
	}
	part := n.absenceFile() + ".part"
	if err := os.WriteFile(part, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(part, n.absenceFile())
}

// absence is what the supervisor has noted last; nil: the back end answers, or
// nobody has tried of late.
func (n notebook) absence() *absence {
	raw, err := os.ReadFile(n.absenceFile())
	a := new(absence)
	if err != nil || json.Unmarshal(raw, a) != nil || time.Since(a.Last) > absenceValid {
		return nil
	}
	return a
}
