//go:build unix

package main

import (
	"os"
	"syscall"
)

// windowChange is the signal that the terminal has another size now.
var windowChange os.Signal = syscall.SIGWINCH
