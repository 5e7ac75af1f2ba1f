package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

// versionView is what 'pcm version' tells.
type versionView struct {
	ID      string `json:"id"`
	Version string `json:"version"`
	Go      string `json:"go"`
	System  string `json:"system"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this program", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionView{"pcm", a.versionString(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return a.print(v, func(t *table) { t.text("pcm %s (%s, %s)", v.Version, v.Go, v.System) })
		},
	}
}
