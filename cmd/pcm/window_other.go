//go:build !unix

package main

import "os"

// windowChange is nil: nothing tells that the terminal has another size now.
var windowChange os.Signal
