package process

import (
	"testing"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
)

func BenchmarkTrue(b *testing.B) {
	for _, c := range []struct{ name, mode string }{{"none", plain}, {"rlimit", plainRlimit}, {"bwrap", sandboxed}, {"landlock", landlocked1}, {"unspaced", landlocked2}} {
		b.Run(c.name, func(b *testing.B) {
			needs(b, c.mode)
			box := adaptertest.NewBox(b, c.mode)
			adaptertest.Bench(b, New(Config{}, box.Client()), 8, func(t *adapters.Task) { t.Command = []string{"true"} })
		})
	}
}
