// Command openi is a plug-in of PCM: train jobs of an AI platform in the style of OpenI's Octopus.
// Written by 'pcm adapter new'; what is yours stands between pcm:begin and pcm:end.
package main

import (
	"fmt"
	"os"
)

// secretNames are those that the site has to give.
var secretNames = []string{"password"}

func main() {
	d := &Described{
		Settings: siteSettings, Secrets: siteSecrets, Servers: servers, Login: login, Limits: limits, Features: features, Sandbox: "container",
		Pools: pools, Create: createJob, Find: findJob, Watch: watchJobs, States: states, Logs: logs, Data: jobData, Stop: stopJob, Kill: killJob, Delete: deleteJob,
	}
	// pcm:begin main
	// pcm:end main
	if err := serve(&described{d: d}, "train jobs of an AI platform in the style of OpenI's Octopus", milli(d.Limits.Poll, 5000)); err != nil {
		fmt.Fprintln(os.Stderr, "openi:", err)
		os.Exit(1)
	}
}
