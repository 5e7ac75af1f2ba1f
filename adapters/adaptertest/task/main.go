// Command task runs a script of conformance tests; it is built for WebAssembly.
package main

import (
	"os"

	"github.com/jointcloud/pcm/adapters/adaptertest/script"
)

func main() { script.Main(os.Args[1:]) }
