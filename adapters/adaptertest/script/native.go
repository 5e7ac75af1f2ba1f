//go:build !wasip1

package script

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// native runs the steps that need processes and signals.
func native(op string, next func() string) error {
	switch op {
	case "term":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		go func() {
			<-c
			fmt.Println("asked to end")
			os.Exit(0)
		}()
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
	case "child":
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.Command(exe, "sleep", next())
		cmd.Stdout = os.Stdout
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return err
		}
		fmt.Println("child", cmd.Process.Pid)
	}
	return nil
}
