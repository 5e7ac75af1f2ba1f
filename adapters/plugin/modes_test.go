package plugin

import (
	"time"

	"github.com/jointcloud/pcm/adapters/plugin/plugintest"
)

// servePlugin is the plug-in, in one of its modes.
func servePlugin(string) error {
	s, err := plugintest.Open()
	if err != nil {
		return err
	}
	return plugintest.Serve(s)
}

func testTimes(string) Times { return Times{Heartbeat: 500 * time.Millisecond, Back: 2 * time.Second} }
