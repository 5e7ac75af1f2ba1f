package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Commands and flags that the README shows exist, and it lists every command.
func TestDocsShowRealCommands(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	root := (&app{getenv: func(string) string { return "" }}).command()
	root.InitDefaultCompletionCmd()
	shown := 0
	for _, line := range regexp.MustCompile(`(?m)^(?:[a-z]*\$ )pcm (.*)$`).FindAllStringSubmatch(string(text), -1) {
		args, _, _ := strings.Cut(line[1], "  #") // a remark
		args, _, _ = strings.Cut(args, " -- ")    // the task's own arguments
		c, rest, err := root.Find(strings.Fields(args))
		if err == nil {
			err = c.ParseFlags(rest)
		}
		if err != nil {
			t.Errorf("README shows %q: %v", line[0], err)
		}
		shown++
	}
	if shown < 10 {
		t.Errorf("only %d commands were found: this test sees too little", shown)
	}
	var listed func(c *cobra.Command)
	listed = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		if !c.HasSubCommands() || c.Name() == "completion" {
			if !strings.Contains(string(text), "| `"+c.CommandPath()+"` |") {
				t.Errorf("README's table does not list %q", c.CommandPath())
			}
			return
		}
		for _, sub := range c.Commands() {
			listed(sub)
		}
	}
	listed(root)
}
